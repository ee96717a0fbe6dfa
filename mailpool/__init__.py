"""mailpool: each tenant's mail on its own authenticated, kept-open SMTP connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mailpool.context import use_tenant

if TYPE_CHECKING:
    from mailpool.delivery import close_connections, stats

__version__ = "0.1.0"
__all__ = ["close_connections", "stats", "use_tenant"]


def __getattr__(name: str) -> Any:
    # Those two need the models, which are not loaded yet when Django imports the package.
    if name in {"close_connections", "stats"}:
        from mailpool import delivery

        return getattr(delivery, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
