"""Bob and Mary: two tenants with an account each, at one host; and the site itself."""

from __future__ import annotations

from django.db import transaction

from mailpool import ownership
from mailpool.models import Credential, MailServer, Sender, Tenant

ACCOUNTS = {"bob": "bobs-secret-password", "mary": "marys-secret-password"}
SITE = {"site": "the-sites-secret-password"}  # mails the codes by which tenants prove addresses


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
    for slug, password in (ACCOUNTS | SITE).items():
        tenant = None
        if slug in ACCOUNTS:
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
        if tenant:
            sender, _ = Sender.objects.get_or_create(
                credential=credential, address=f"{slug}@example.com"
            )
            ownership.confirm([sender])  # an operator's word: nobody has to prove it
    return server
