"""The admin of mailpool's own tenant model, where the project has none."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from mailpool.admin.credentials import TenantAdminMixin
from mailpool.models import Tenant


class TenantAdmin(TenantAdminMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    """A tenant with its credentials."""

    empty_text = _(
        "There is no tenant yet. Add one for each customer, brand or department that sends from a "
        "mail account of its own; its credentials are entered on its page."
    )
    fields = ("name", "slug", "is_active")
    list_display = ("name", "slug", "is_active", "credentials")
    # The model's own is dropped from a query that counts, as the choice by typing makes it.
    ordering = ("name", "pk")
    list_filter = ("is_active",)
    search_fields = ("name", "slug")
    prepopulated_fields = {"slug": ("name",)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Tenant]:
        queryset: QuerySet[Tenant] = super().get_queryset(request)
        return queryset.annotate(credential_count=Count("mailpool_credentials"))

    @admin.display(description=_("credentials"), ordering="credential_count")
    def credentials(self, tenant: Tenant) -> int:
        return tenant.credential_count  # type: ignore[attr-defined,no-any-return]


if not Tenant._meta.swapped:
    admin.site.register(Tenant, TenantAdmin)
