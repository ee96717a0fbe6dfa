from django.contrib import admin

from mailpool.admin import TenantAdminMixin
from tests.swapped.models import Shop


@admin.register(Shop)
class ShopAdmin(TenantAdminMixin, admin.ModelAdmin):
    pass
