"""Mail servers, with the switch."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool import conf
from mailpool.admin.actions import set_field
from mailpool.admin.audit import TrailLink
from mailpool.admin.credentials import CredentialInline, FirstCredentialInline, choose_by_typing
from mailpool.admin.maintaining import MaintenancePages
from mailpool.admin.moving import MovePage
from mailpool.admin.pages import admin_url
from mailpool.admin.presets import PresetStart
from mailpool.admin.records import RecordsLink
from mailpool.admin.secrecy import SecretiveAdmin
from mailpool.admin.verify import SaveAndTest, ServerVerification
from mailpool.models import MailServer

# Accounts that are shown on their server's page.
INLINE_AT_MOST = 20


def accounts_url(site: str | None, server: MailServer) -> str:
    """The list of a server's credentials."""
    return admin_url(site, "mailpool_credential_changelist", server__id__exact=server.pk)


@admin.register(MailServer)
class MailServerAdmin(
    ServerVerification,
    SaveAndTest,
    MovePage,
    MaintenancePages,
    PresetStart,
    TrailLink,
    RecordsLink,
    SecretiveAdmin,
):
    """One mail server: how it is reached, and whether its connections are maintained."""

    change_list_template = "admin/mailpool/server_list.html"
    empty_text = _(
        "There is no mail server yet. Add one: the form begins with the provider and fills in what "
        "it says of its servers. The accounts there, as credentials, come next."
    )
    inlines = (CredentialInline,)
    # The switch early, so that it is there on a phone.
    list_display = (
        "name",
        "maintain_connection",
        "address",
        "encryption",
        "tenant",
        "tenants",
        "is_active",
    )
    list_select_related = ("tenant",)
    list_editable = ("maintain_connection",)
    # The model's own is dropped from a query that counts, as the choice by typing makes it.
    ordering = ("name", "pk")
    search_fields = ("name", "host")
    actions = ("maintain", "do_not_maintain")
    fieldsets = (
        (
            _("Mail server"),
            {
                "fields": (
                    "name",
                    "tenant",
                    ("host", "port"),
                    "security",
                    "timeout",
                    "ca_certificate",
                    "is_active",
                )
            },
        ),
        (
            _("Connections"),
            {
                "fields": (
                    "maintain_connection",
                    "max_connections",
                    "idle_timeout",
                    "max_lifetime",
                    "max_messages",
                )
            },
        ),
        (
            _("Timeouts and speed"),
            {
                "classes": ("collapse",),
                "fields": ("connect_timeout", "data_timeout", "final_timeout", "single_flight"),
            },
        ),
    )

    def get_autocomplete_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return choose_by_typing(request, self.admin_site, ("tenant",))

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return (*super().get_search_fields(request), f"tenant__{conf.get('TENANT_SLUG_FIELD')}")

    def get_changelist_form(self, request: HttpRequest, **kwargs: Any) -> Any:
        # The list's own header is no label for screen readers.
        label = MailServer._meta.get_field("maintain_connection").verbose_name
        widget = forms.CheckboxInput(attrs={"aria-label": label})
        kwargs.setdefault("widgets", {"maintain_connection": widget})
        return super().get_changelist_form(request, **kwargs)

    def get_inlines(self, request: HttpRequest, obj: Any) -> list[Any]:
        # A form with a hundred accounts is too large to be sent; the page links to the list then.
        if obj is None:
            return [FirstCredentialInline]
        return list(self.inlines) if obj.credentials.count() <= INLINE_AT_MOST else []

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        server = kwargs.get("obj")
        if server is not None and request.user.has_perm("mailpool.view_credential"):
            context["accounts_url"] = accounts_url(self.admin_site.name, server)
            context["accounts"] = server.credentials.count()
        return super().render_change_form(request, context, *args, **kwargs)

    def get_queryset(self, request: HttpRequest) -> QuerySet[MailServer]:
        queryset: QuerySet[MailServer] = super().get_queryset(request)
        return queryset.annotate(
            tenant_count=Count("credentials__tenant", distinct=True),
            site_count=Count(
                "credentials", filter=Q(credentials__tenant__isnull=True), distinct=True
            ),
        )

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        context = {"may_view_connections": self.may_view_connections(request)}
        return super().changelist_view(request, {**context, **(extra_context or {})})

    @admin.display(description=_("host"), ordering="host")
    def address(self, server: MailServer) -> str:
        return f"{server.host}:{server.port}"

    @admin.display(description=_("security"), ordering="security")
    def encryption(self, server: MailServer) -> str:
        # The choice's label explains too much for a column.
        names = {"starttls": "STARTTLS", "tls": "TLS"}
        return names.get(server.security) or str(_("none"))

    @admin.display(description=_("tenants using it"), ordering="tenant_count")
    def tenants(self, server: MailServer) -> str:
        count: int = server.tenant_count  # type: ignore[attr-defined]
        site: int = server.site_count  # type: ignore[attr-defined]
        text = gettext("%(count)d + site") % {"count": count} if site else str(count)
        url = accounts_url(self.admin_site.name, server)
        if not url or not (count or site):
            return text
        return format_html('<a href="{}">{}</a>', url, text)

    @admin.action(description=_("Maintain connections"), permissions=["change"])
    def maintain(self, request: HttpRequest, queryset: QuerySet[MailServer]) -> None:
        set_field(self, request, queryset, "maintain_connection", True)

    @admin.action(
        description=_("Do not maintain connections (open new ones at each send)"),
        permissions=["change"],
    )
    def do_not_maintain(self, request: HttpRequest, queryset: QuerySet[MailServer]) -> None:
        set_field(self, request, queryset, "maintain_connection", False)
