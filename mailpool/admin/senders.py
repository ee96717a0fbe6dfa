"""All senders with their owners, for operators who confirm them. Edited with their credentials."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from mailpool import conf, ownership
from mailpool.admin.acting import RecordedAdmin
from mailpool.admin.credentials import ownership_of
from mailpool.admin.plain import PlainFilter
from mailpool.models import Sender


class ProvenFilter(PlainFilter):
    """Those that are proven, and those that are not."""

    title = _("ownership")
    parameter_name = "proven"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("yes", _("Proven")), ("no", _("Not proven"))]

    def queryset(self, request: HttpRequest, queryset: Any) -> QuerySet[Sender]:
        if not self.value():
            return queryset  # type: ignore[no-any-return]
        if self.value() not in ("yes", "no"):
            return self.nothing(request, queryset)
        found: QuerySet[Sender] = queryset.of_tenants(proven=self.value() == "yes")
        return found


@admin.register(Sender)
class SenderAdmin(RecordedAdmin, admin.ModelAdmin):  # type: ignore[type-arg]
    """There only where ownership is asked for (``VERIFY_SENDERS``); changes nothing else."""

    empty_text = _(
        "There is no sender yet. Senders are entered with their credential, or by tenants on their "
        "own pages; here they can be confirmed."
    )
    list_display = ("address", "tenant", "credential", "ownership")
    list_display_links = None
    fields = readonly_fields = ("address", "tenant", "credential", "ownership")
    list_filter = (ProvenFilter,)
    list_select_related = ("credential__tenant", "credential__server")
    list_per_page = 50
    search_fields = ("address", "credential__username")
    actions = ("confirm", "withdraw")

    def has_module_permission(self, request: HttpRequest) -> bool:
        return conf.verifies_senders() and super().has_module_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return conf.verifies_senders() and super().has_view_permission(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Not on its own pages; with its credential it goes, by the permission for that."""
        match = request.resolver_match
        is_own = match is not None and (match.url_name or "").startswith("mailpool_sender_")
        return not is_own and bool(request.user.has_perm("mailpool.delete_credential"))

    def has_confirm_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("mailpool.confirm_sender"))

    @admin.display(description=_("tenant"), ordering="credential__tenant")
    def tenant(self, sender: Sender) -> Any:
        return sender.credential.tenant

    @admin.display(description=_("ownership"), ordering="proven_at")
    def ownership(self, sender: Sender) -> str:
        return ownership_of(sender)

    @admin.action(description=_("Mark the selected senders as confirmed"), permissions=["confirm"])
    def confirm(self, request: HttpRequest, queryset: QuerySet[Sender]) -> None:
        count = ownership.confirm(_of_tenants(queryset))
        text = ngettext(
            "%(count)d sender was confirmed.", "%(count)d senders were confirmed.", count
        )
        self.message_user(request, text % {"count": count})

    @admin.action(description=_("Let the selected senders be proven anew"), permissions=["confirm"])
    def withdraw(self, request: HttpRequest, queryset: QuerySet[Sender]) -> None:
        count = ownership.withdraw(_of_tenants(queryset))
        text = ngettext(
            "%(count)d sender has to be proven anew.",
            "%(count)d senders have to be proven anew.",
            count,
        )
        self.message_user(request, text % {"count": count})


def _of_tenants(queryset: QuerySet[Sender]) -> QuerySet[Sender]:
    rows = Sender.objects.filter(pk__in=queryset.order_by().values("pk"))
    return rows.filter(credential__tenant__isnull=False).select_related("credential")
