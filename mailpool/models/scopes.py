"""A tenant's key in the form in which it can be unique."""

from __future__ import annotations

from typing import Any, cast

from django.db import models


def scope_of(row: Any) -> str:
    """The tenant's key as text, ``""`` for none: keys may have been given in other spellings."""
    if row.tenant_id is None:
        return ""
    key = cast("models.ForeignKey[Any, Any]", row._meta.get_field("tenant")).target_field
    return str(key.to_python(row.tenant_id))


def proof_of(scope: str, address: str) -> str:
    """What is stored with a sender whose ownership was proven: by which tenant, of what.

    So a proof is worth nothing to another tenant or for another address, whichever way a row
    came to have it. The site's own senders, whose scope is ``""``, need none.
    """
    return f"{scope} {address}"


class ScopeField(models.CharField):  # type: ignore[type-arg]
    """The tenant's key as text, and ``""`` for the site itself.

    For unique constraints only: databases hold two NULLs for different, so one over a nullable
    tenant would let the site have the same account or sender twice. Nothing is routed by it.
    """

    def pre_save(self, model_instance: Any, add: bool) -> str:
        scope: str = model_instance.get_scope()
        setattr(model_instance, self.attname, scope)
        return scope
