"""The audit trail: to be looked at by whoever may, and changed by nobody."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import models
from django.db.models import Exists, OuterRef, QuerySet, Value
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from mailpool.admin.pages import admin_url
from mailpool.admin.plain import PlainAnswers
from mailpool.audit import AuditEntry
from mailpool.models import Credential, MailServer, OAuthClient
from mailpool.moments import moment

# What an entry may be about: the column with its key.
ABOUT: dict[str, type[models.Model]] = {
    "credential_id": Credential,
    "server_id": MailServer,
    "oauth_client_id": OAuthClient,
}


class TrailLink(admin.ModelAdmin):  # type: ignore[type-arg]
    """From the page of a credential, server or OAuth client to what was done to it."""

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        row = kwargs.get("obj")
        if row is not None and request.user.has_perm("mailpool.view_auditentry"):
            key = next(name for name, model in ABOUT.items() if isinstance(row, model))
            context["trail_url"] = admin_url(
                self.admin_site.name, "mailpool_auditentry_changelist", **{f"{key}__exact": row.pk}
            )
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(AuditEntry)
class AuditEntryAdmin(PlainAnswers, admin.ModelAdmin):  # type: ignore[type-arg]
    """Entries, newest first. Superusers can't change them here either."""

    empty_text = _(
        "Nothing has been done yet. Whatever is done to a credential, mail server or OAuth client "
        "is put down here by itself."
    )
    list_display = ("time", "action", "who", "about_link", "tenant_name", "details")
    list_display_links = ("time",)
    list_filter = ("action", "when")
    list_per_page = 50
    show_full_result_count = False  # the table only grows
    search_fields = ("username", "tenant", "server", "oauth_client", "actor")
    search_help_text = _(
        "Finds usernames, tenants, servers, OAuth clients and users, as they were called then."
    )
    # The keys are for whoever looks for what is gone, or is called otherwise by now.
    said: tuple[str, ...] = ("time", "action", "who", "about_link", "tenant_name")
    said = (*said, "server", "username", "oauth_client", "details")
    keys = ("actor_key", *ABOUT)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (*self.said, *self.keys)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Without what an entry does not have, which is most of it with each."""
        told, keys = (
            [name for name in names if getattr(obj, name, True) not in ("", None)]
            for names in (self.said, self.keys)
        )
        first = (None, {"fields": told})
        return [first, (_("Keys"), {"classes": ("collapse",), "fields": keys})] if keys else [first]

    def get_queryset(self, request: HttpRequest) -> Any:
        pages = {}
        for key, model in ABOUT.items():
            may_view = request.user.has_perm(f"mailpool.view_{model._meta.model_name}")
            there_is = Exists(model._default_manager.filter(pk=OuterRef(key)))
            pages[f"{key}_has_page"] = there_is if may_view else Value(False)
        queryset: QuerySet[AuditEntry] = super().get_queryset(request)
        return queryset.annotate(**pages)

    @admin.display(description=_("time"), ordering="pk")
    def time(self, entry: AuditEntry) -> str:
        return moment(entry.when, seconds=True)

    @admin.display(description=_("by"), ordering="actor")
    def who(self, entry: AuditEntry) -> str:
        # Not within the f-string, where makemessages does not find it.
        actor = entry.actor or gettext("a process")
        return f"{actor} ({entry.way})"

    @admin.display(description=_("about"), ordering="username")
    def about_link(self, entry: AuditEntry) -> str:
        """What it is about, with a link to its page as long as there is one."""
        name = entry.about or gettext("(all credentials)")
        for key, model in ABOUT.items():
            if getattr(entry, f"{key}_has_page"):
                page = f"mailpool_{model._meta.model_name}_change"
                if url := admin_url(self.admin_site.name, page, getattr(entry, key)):
                    return format_html('<a href="{}">{}</a>', url, name)
        return name

    @admin.display(description=_("tenant"), ordering="tenant")
    def tenant_name(self, entry: AuditEntry) -> str:
        return entry.owner
