"""For admin pages that take passwords and keys: error pages and error mails don't show them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from mailpool.admin.acting import RecordedAdmin
from mailpool.secrecy import hide_submitted


class SecretSubmissions:
    """For a ``ModelAdmin`` whose pages take passwords; to be named before it."""

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        hide_submitted(request)
        return super().changeform_view(request, *args, **kwargs)  # type: ignore[misc]


class SecretiveAdmin(RecordedAdmin, SecretSubmissions, admin.ModelAdmin):  # type: ignore[type-arg]
    """A ``ModelAdmin`` of mailpool's own."""
