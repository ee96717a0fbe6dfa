"""Which tenant the running code works for: ``use_tenant`` and the request's tenant.

Both live in ``ContextVar``s, so that threads and async tasks never see each other's tenant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# A tenant instance, its slug or its primary key. Which model it is, is a setting.
TenantRef = Any

_chosen: ContextVar[TenantRef | None] = ContextVar("mailpool_tenant", default=None)
_request: ContextVar[TenantRef | None] = ContextVar("mailpool_request_tenant", default=None)


def is_nothing(tenant: TenantRef | None) -> bool:
    """Whether *tenant* names nobody: ``None`` or an empty string."""
    return tenant is None or (isinstance(tenant, str) and not tenant.strip())


@contextmanager
def use_tenant(tenant: TenantRef) -> Iterator[None]:
    """Send all mail inside the block as *tenant* (an instance, or its slug).

    Blocks nest; the inner one wins. Raises ``TypeError`` for ``None`` and ``""``: a variable
    that is unexpectedly empty must not send a tenant's mail on the site's own account.
    Whether the tenant exists is looked up when something is sent.
    """
    if is_nothing(tenant):
        raise TypeError("use_tenant() needs a tenant or its slug, not an empty value.")
    token = _chosen.set(tenant)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextmanager
def use_request_tenant(tenant: TenantRef | None) -> Iterator[None]:
    """Send mail inside the block as the request's *tenant*, where nothing else is said.

    ``None`` is a request without one. An empty slug is not: it leads to an error when something
    is sent, instead of to the site's own account.
    """
    token = _request.set(tenant)
    try:
        yield
    finally:
        _request.reset(token)


def forget_request_tenant(**kwargs: Any) -> None:
    """From here on the request goes on without its tenant; as a signal's receiver as well."""
    _request.set(None)


def current_tenant() -> TenantRef | None:
    """The tenant of the innermost ``use_tenant`` block, else the request's, else ``None``."""
    chosen = _chosen.get()
    return _request.get() if chosen is None else chosen
