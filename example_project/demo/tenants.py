"""Bob and Mary: two tenants with an account each, at one host."""

from __future__ import annotations

from django.db import transaction

from mailpool.models import Credential, MailServer, Tenant

ACCOUNTS = {"bob": "bobs-secret-password", "mary": "marys-secret-password"}


@transaction.atomic
def store(port: int, ca_certificate: str) -> MailServer:
    """Enter both, as an operator would in the admin; again at each run, for the port is new."""
    # What they entered themselves was for the port of another run.
    Credential.objects.filter(server__tenant__isnull=False).delete()
    MailServer.objects.filter(tenant__isnull=False).delete()
    server, _ = MailServer.objects.update_or_create(
        name="Demo mail host",
        defaults={
            "host": "localhost",
            "port": port,
            "security": MailServer.Security.STARTTLS,
            "ca_certificate": ca_certificate,
            "maintain_connection": True,
            "is_active": True,
        },
    )
    for slug, password in ACCOUNTS.items():
        tenant, _ = Tenant.objects.update_or_create(
            slug=slug, defaults={"name": slug.title(), "is_active": True}
        )
        credential = Credential.objects.filter(tenant=tenant, server=server).first()
        credential = credential or Credential(tenant=tenant, server=server)
        credential.username = slug
        credential.password = password
        credential.default_from = f"{slug.title()} <{slug}@example.com>"
        credential.is_active = True
        credential.save()
    return server
