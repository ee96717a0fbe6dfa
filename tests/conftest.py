from __future__ import annotations

import pytest
from django.core.cache import cache

from mailpool import delivery
from tests.smtpd import Authority, MailHost


@pytest.fixture(autouse=True)
def _no_connection_left():
    """Each test starts and ends with an empty pool, and nothing that pages keep for a minute."""
    yield
    delivery.get_pool().close()
    delivery.get_pool().forgive()
    cache.clear()


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def mail_host(authority):
    """A host with STARTTLS, where every account's password is ``tests.smtpd.PASSWORD``."""
    with MailHost(authority) as host:
        yield host


@pytest.fixture
def real_mail(settings):
    """Mail that goes out: Django puts a mailbox in memory in its place for tests."""
    if hasattr(settings, "MAILERS"):
        settings.MAILERS = {"default": {"BACKEND": "mailpool.backends.EmailBackend"}}
    else:
        settings.EMAIL_BACKEND = "mailpool.backends.EmailBackend"
    return settings


@pytest.fixture
def make_credential(db, authority):
    """Make a tenant's credential at a host: ``make_credential(host, "bob")``."""
    from mailpool.models import MailServer, Tenant
    from tests.factories import CredentialFactory, MailServerFactory, TenantFactory

    def make(host, slug=None, *, server=None, tenant=None, **kwargs):
        if tenant is None and slug:
            tenant = Tenant.objects.filter(slug=slug).first() or TenantFactory(slug=slug)
        server = server or MailServer.objects.filter(port=host.port).first()
        if server is None:
            server = MailServerFactory(
                host="localhost",
                port=host.port,
                security=host.security,
                ca_certificate=(getattr(host, "authority", None) and host.authority.pem) or "",
                timeout=10,
            )
        kwargs.setdefault("username", slug or "site")
        return CredentialFactory(tenant=tenant, server=server, **kwargs)

    return make
