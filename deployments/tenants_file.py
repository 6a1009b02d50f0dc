"""Which tenants and keys are there? The tenants file, its checks, and how a key is made.

A key is 256 random bits, so a plain SHA-256 of it cannot be searched: slow hashes protect passwords,
which people choose. Only the digest is kept; the id in the key's middle is public and finds the row.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError, model_validator

from deployments.config import fault_lines, read_yaml
from deployments.config_sections import Section
from deployments.policies.language import LanguageMode
from deployments.policies.quota import QuotaLimits
from deployments.tenant import Permission, Tenant
from llama31.chat import Priority
from llama31.errors import ConfigInvalid

_KEY = re.compile(r"l31_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
TENANT_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"

_Count = Annotated[int, Field(ge=0, le=10**12)]


class KeySection(Section):
    """One key of a tenant. Two at a time make a rotation without a gap."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    expires: AwareDatetime | None = None


class TenantSection(Section):
    """What one tenant may do; a limit that is left out does not exist."""

    keys: list[KeySection] = Field(default_factory=list)
    models: list[str] | None = None
    priority: Literal["interactive", "standard", "batch"] = "interactive"
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    concurrent_requests: _Count | None = None
    weight: float = Field(default=1.0, ge=0.01, le=100, strict=False)
    permissions: list[Permission] = Field(default_factory=list)
    language: LanguageMode | None = None

    def tenant(self, name: str) -> Tenant:
        """As the rest of the system sees it."""
        return Tenant(
            name=name,
            models=None if self.models is None else frozenset(self.models),
            priority=Priority[self.priority.upper()],
            permissions=frozenset(self.permissions),
            limits=QuotaLimits(self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests),
            weight=self.weight,
            language=self.language,
        )


class TenantsFile(Section):
    """The whole file."""

    tenants: dict[Annotated[str, StringConstraints(pattern=f"^{TENANT_NAME}$")], TenantSection]

    @model_validator(mode="after")
    def _ids_are_unique(self) -> TenantsFile:
        seen: dict[str, str] = {}
        for name, tenant in self.tenants.items():
            for key in tenant.keys:
                if key.id in seen:
                    raise ValueError(f"key {key.id} stands twice: at {seen[key.id]} and at {name}")
                seen[key.id] = name
        return self


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A digest and whose it is. `expires_s` is in seconds since 1970; None = never."""

    digest: bytes
    expires_s: float | None
    tenant: Tenant


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys by their public id."""

    rows: Mapping[str, KeyRow]

    def find(self, key: str, now_s: float) -> Tenant | None:
        """The tenant of a key that is known and not expired."""
        shape = _KEY.fullmatch(key)
        row = self.rows.get(shape[1]) if shape else None
        if row is None or not hmac.compare_digest(row.digest, hashlib.sha256(key.encode()).digest()):
            return None
        return row.tenant if row.expires_s is None or now_s < row.expires_s else None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key, told once, and what the tenants file keeps of it."""

    key: str
    id: str
    sha256: str


def make_key() -> NewKey:
    """A new random key."""
    identity = secrets.token_hex(6)
    key = f"l31_{identity}_{secrets.token_urlsafe(32)}"
    return NewKey(key, identity, hashlib.sha256(key.encode()).hexdigest())


def file_lines(tenant: str, new: NewKey, expires: datetime | None = None) -> str:
    """What to put into the tenants file for a new key. Raises: ConfigInvalid for a name that cannot be one."""
    if not re.fullmatch(TENANT_NAME, tenant):
        raise ConfigInvalid(f"{tenant!r} is no tenant name: a-z 0-9 . _ - and at most 64 characters")
    expiry = f", expires: {expires.isoformat(timespec='seconds')}" if expires else ""
    return f'tenants:\n  {tenant}:\n    keys:\n      - {{id: "{new.id}", sha256: "{new.sha256}"{expiry}}}'


def load_tenants(path: str) -> KeyRing:
    """Raises: ConfigInvalid, with every fault on a line of its own."""
    try:
        file = TenantsFile.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigInvalid(f"{path} is not a valid tenants file:\n  " + fault_lines(error)) from None
    rows = {}
    for name, section in file.tenants.items():
        tenant = section.tenant(name)
        for key in section.keys:
            expires_s = key.expires.timestamp() if key.expires else None
            rows[key.id] = KeyRow(bytes.fromhex(key.sha256), expires_s, tenant)
    return KeyRing(MappingProxyType(rows))
