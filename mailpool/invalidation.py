"""Closes idle connections of what was changed, once the change is committed.

This makes it immediate in the process that made the change. The others need no message: they
compute the pool's key from the database at each send.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

from mailpool import conf
from mailpool.models import Credential, MailServer


@receiver([post_save, post_delete], dispatch_uid="mailpool.invalidation")
def close_changed(sender: type[Any], instance: Any, **kwargs: Any) -> None:
    """Close the connections of a changed or deleted credential, server or tenant."""
    if kwargs.get("raw") or kwargs.get("created"):
        return
    if sender is Credential:
        filters = {"credential": instance.pk}
    elif sender is MailServer:
        filters = {"server": instance.pk}
    elif sender._meta.label_lower == conf.tenant_model().lower():
        filters = {"tenant": instance.pk}
    else:
        return
    from mailpool.delivery import close_connections

    transaction.on_commit(partial(close_connections, **filters), using=kwargs.get("using"))
