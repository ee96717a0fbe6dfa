"""The audit trail: to be looked at by whoever may, and changed by nobody."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Exists, OuterRef, QuerySet, Value
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool.audit import AuditEntry
from mailpool.models import Credential


class TrailLink(admin.ModelAdmin):  # type: ignore[type-arg]
    """From a credential's page to what was done to it."""

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        credential = kwargs.get("obj")
        if credential is not None and request.user.has_perm("mailpool.view_auditentry"):
            entries = reverse("admin:mailpool_auditentry_changelist")
            context["trail_url"] = f"{entries}?credential_id__exact={credential.pk}"
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(AuditEntry)
class AuditEntryAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Entries, newest first. Superusers can't change them here either."""

    list_display = ("time", "action", "who", "account_link", "tenant_name", "details")
    list_display_links = ("time",)
    list_filter = ("action", "when")
    list_per_page = 50
    show_full_result_count = False  # the table only grows
    search_fields = ("username", "tenant", "server", "actor")
    search_help_text = _("Finds usernames, tenants, servers and users, as they were called then.")
    fields = (
        "time",
        "action",
        "who",
        "actor_key",
        "way",
        "account_link",
        "credential_id",
        "tenant_name",
        "server",
        "username",
        "details",
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields

    def get_queryset(self, request: HttpRequest) -> Any:
        has_page = Exists(Credential.objects.filter(pk=OuterRef("credential_id")))
        may_view = request.user.has_perm("mailpool.view_credential")
        queryset: QuerySet[AuditEntry] = super().get_queryset(request)
        return queryset.annotate(has_page=has_page if may_view else Value(False))

    @admin.display(description=_("time"), ordering="pk")
    def time(self, entry: AuditEntry) -> str:
        return entry.local_time

    @admin.display(description=_("by"), ordering="actor")
    def who(self, entry: AuditEntry) -> str:
        return f"{entry.actor or gettext('a process')} ({entry.way})"

    @admin.display(description=_("account"), ordering="username")
    def account_link(self, entry: AuditEntry) -> str:
        """The credential, with a link to its page as long as there is one."""
        name = entry.account or gettext("(all credentials)")
        if not entry.has_page:  # type: ignore[attr-defined]
            return name
        url = reverse("admin:mailpool_credential_change", args=[entry.credential_id])
        return format_html('<a href="{}">{}</a>', url, name)

    @admin.display(description=_("tenant"), ordering="tenant")
    def tenant_name(self, entry: AuditEntry) -> str:
        if entry.credential_id is None:
            return ""
        return entry.tenant or gettext("(site)")
