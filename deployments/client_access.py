"""How does a client trust the server, and when may it send its key?"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

import grpc

from llama31.errors import ConfigInvalid


@dataclass(frozen=True, slots=True)
class Tls:
    """How to trust the server and be trusted: PEM files; without `ca_file` the CAs that gRPC brings along."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


def key_metadata(
    address: str, api_key: str, tls: Tls | None, send_key_in_plaintext: bool
) -> tuple[tuple[str, str], ...]:
    """What every call carries. Raises: ConfigInvalid, rather than send a key in plaintext to another machine."""
    if not api_key:
        return ()
    if tls is None and not send_key_in_plaintext and not _is_this_machine(address):
        raise ConfigInvalid(
            f"the API key would go to {address} in plaintext; use TLS, or say send_key_in_plaintext if the way is safe"
        )
    if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ConfigInvalid("the API key holds characters that no key has; is it the right file?")
    return (("authorization", f"Bearer {api_key}"),)


def _is_this_machine(address: str) -> bool:
    target = re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?", "", address)
    if target.startswith("unix"):
        return True
    host = re.sub(r":\d+$", "", target).strip("[]")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Of a TLS channel. Raises: ConfigInvalid for a file that cannot be read."""
    try:
        pems = [Path(file).read_bytes() if file else None for file in (tls.ca_file, tls.key_file, tls.cert_file)]
    except OSError as error:
        raise ConfigInvalid(f"{error.filename}: {error.strerror}") from None
    return grpc.ssl_channel_credentials(*pems)
