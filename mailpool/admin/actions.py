"""Bulk actions that change one field."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import router, transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import ngettext


def set_field(
    model_admin: admin.ModelAdmin[Any],
    request: HttpRequest,
    queryset: QuerySet[Any],
    field: str,
    value: bool,
) -> None:
    """Set *field* of each selected row to *value*, with an entry in its history.

    Row by row, so that what follows a change (closing its connections) follows here too.
    """
    # The page's own query counts and joins, and such rows can't be locked.
    using = router.db_for_write(queryset.model)
    rows = queryset.model._default_manager.using(using).filter(pk__in=queryset.values("pk"))
    changed = 0
    with transaction.atomic(using=using):
        for row in rows.filter(**{field: not value}).select_for_update():
            setattr(row, field, value)
            row.save(update_fields=[field])
            model_admin.log_change(request, row, [{"changed": {"fields": [_label(row, field)]}}])
            changed += 1
    model_admin.message_user(
        request,
        ngettext("%(count)d row was changed.", "%(count)d rows were changed.", changed)
        % {"count": changed},
    )


def _label(row: Any, field: str) -> str:
    return str(row._meta.get_field(field).verbose_name)
