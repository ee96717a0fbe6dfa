"""Bob's and Mary's own page: each enters, verifies and revokes an account, outside of the admin."""

from __future__ import annotations

from django.contrib.auth.mixins import LoginRequiredMixin

from demo import web
from mailpool.models import Tenant
from mailpool.views import TenantCredentialMixin, credential_urls


class OwnPages(LoginRequiredMixin, TenantCredentialMixin):
    def get_tenant(self, request):
        """In this demo users are called like their tenant; yours has a membership of some kind."""
        return Tenant.objects.filter(slug=request.user.get_username()).first()

    def get_test_recipient(self, request):
        return request.user.email

    @property
    def server_defaults(self):
        # Only since the demo's mail host has a certificate of an authority of its own.
        return {"ca_certificate": web.host.ca_certificate} if web.host else {}


urlpatterns = credential_urls(OwnPages)
