"""Which models may a tenant know of? One that was not granted is answered like one that does not exist."""

from __future__ import annotations

from deployments.call import Gateway, ModelStatus
from deployments.tenant import Tenant
from llama31.errors import ModelNotFound


def granted_models(gateway: Gateway, tenant: Tenant) -> tuple[ModelStatus, ...]:
    """Those that the tenant may use, ready or not."""
    return tuple(model for model in gateway.models() if tenant.may_use(model.name))


def find_model(gateway: Gateway, tenant: Tenant, name: str) -> ModelStatus:
    """The granted model of this name. Raises: ModelNotFound."""
    granted = granted_models(gateway, tenant)
    model = next((m for m in granted if m.name == name), None)
    if model is None:
        raise ModelNotFound(name, tuple(m.name for m in granted))
    return model
