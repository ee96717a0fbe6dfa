"""Rows for tests."""

import factory

from mailpool.models import Credential, MailServer, Sender, Tenant
from tests.smtpd import PASSWORD


class TenantFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Tenant

    slug = factory.Sequence(lambda n: f"tenant-{n}")
    name = factory.LazyAttribute(lambda tenant: tenant.slug.title())


class MailServerFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = MailServer

    name = factory.Sequence(lambda n: f"server {n}")
    host = "smtp.example.com"


class CredentialFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Credential

    tenant = factory.SubFactory(TenantFactory)
    server = factory.SubFactory(MailServerFactory)
    username = factory.Sequence(lambda n: f"user-{n}@example.com")
    password = PASSWORD


class SenderFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Sender

    credential = factory.SubFactory(CredentialFactory)
    address = factory.Sequence(lambda n: f"sender-{n}@example.com")
