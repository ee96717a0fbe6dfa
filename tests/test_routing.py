"""Which credential: the rules in their order, and that nothing ever falls through."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import (
    ImproperlyConfigured,
    MiddlewareNotUsed,
    SuspiciousOperation,
)
from django.core.mail import EmailMessage
from django.http import HttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path

from mailpool import use_tenant
from mailpool.context import current_tenant, use_request_tenant
from mailpool.exceptions import AmbiguousRoute, NoRoute, SenderNotAllowed
from mailpool.middleware import TenantMiddleware
from mailpool.models import Credential, MailServer, Tenant
from mailpool.rendering import render
from mailpool.routing import Router
from tests.factories import CredentialFactory, MailServerFactory, SenderFactory, TenantFactory

pytestmark = pytest.mark.django_db


def mail(sender="x@example.com", tenant=None, **kwargs):
    message = EmailMessage("hello", "text", sender, ["a@example.com"], **kwargs)
    if tenant is not None:
        message.tenant = tenant
    return message


def route(message, option=None):
    return Router(option).resolve(message)


@pytest.fixture
def accounts():
    """One credential for each way to be chosen; the slug says which."""
    made = {
        slug: CredentialFactory(tenant=TenantFactory(slug=slug))
        for slug in ("message", "option", "context", "request", "exact", "domain")
    }
    made["site"] = CredentialFactory(tenant=None)
    SenderFactory(credential=made["exact"], address="me@example.com")
    SenderFactory(credential=made["domain"], address="@example.com")
    for slug in ("message", "option", "context", "request"):
        SenderFactory(credential=made[slug], address="me@example.com")
        SenderFactory(credential=made[slug], address="@example.com")
    return made


RULES = ["message", "option", "context", "request", "exact", "domain", "site"]


@pytest.mark.parametrize("first", range(len(RULES)))
def test_the_first_rule_that_applies_decides(accounts, first):
    """All rules from *first* on have something to say; the first one is heard."""
    from contextlib import ExitStack

    applies = set(RULES[first:])
    for slug in {"message", "option", "context", "request"}:
        # Their senders would otherwise compete for the address.
        accounts[slug].senders.filter(credential__tenant__slug=slug).delete()
    sender = {"exact": "Me@Example.com", "domain": "other@example.com"}.get(
        RULES[first], "me@example.com" if first < 4 else "nobody@elsewhere.example"
    )
    with ExitStack() as stack:
        if "request" in applies:
            stack.enter_context(use_request_tenant("request"))
        if "context" in applies:
            stack.enter_context(use_tenant("context"))
        message = mail(sender, "message" if "message" in applies else None)
        chosen = route(message, "option" if "option" in applies else None)
    assert chosen == accounts[RULES[first]]


@pytest.mark.parametrize("rule", ["message", "option", "context", "request", "exact", "domain"])
def test_a_known_tenant_that_can_not_send_never_falls_through(accounts, rule):
    for slug in {"message", "option", "context", "request"} - {rule}:
        accounts[slug].senders.all().delete()
    if rule not in ("exact", "domain"):
        accounts[rule].senders.all().delete()
    Credential.objects.filter(pk=accounts[rule].pk).update(is_active=False)
    sender = {"exact": "me@example.com", "domain": "other@example.com"}.get(rule, "me@example.com")
    message = mail(sender, rule if rule == "message" else None)
    context = {"context": use_tenant, "request": use_request_tenant}.get(rule, use_request_tenant)
    with context(rule if rule in ("context", "request") else None), pytest.raises(NoRoute):
        route(message, rule if rule == "option" else None)


def test_by_instance_slug_and_key():
    credential = CredentialFactory(tenant__slug="bob")
    for reference in (credential.tenant, "bob", credential.tenant.pk):
        assert route(mail(tenant=reference)) == credential


@pytest.mark.parametrize("nonsense", ["nobody", "", 42, object(), Tenant(slug="new"), True, b"bob"])
def test_what_is_no_tenant_is_no_route(nonsense):
    CredentialFactory(tenant=None)
    with pytest.raises(NoRoute):
        route(mail(tenant=nonsense))


def test_stale_instance_is_read_again():
    credential = CredentialFactory()
    tenant = credential.tenant
    Tenant.objects.filter(pk=tenant.pk).update(is_active=False)
    assert tenant.is_active
    with pytest.raises(NoRoute, match="inactive"):
        route(mail(tenant=tenant))


def test_blocks_nest_and_end():
    with use_tenant("outer"):
        with use_tenant("inner"):
            assert current_tenant() == "inner"
        assert current_tenant() == "outer"
    assert current_tenant() is None


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_an_empty_value_is_an_error_and_not_the_site(empty):
    with pytest.raises(TypeError, match="needs a tenant"), use_tenant(empty):
        pass


def test_address_of_two_tenants_is_ambiguous_whoever_of_them_can_send():
    first, second = (SenderFactory(address="shop@example.com") for _ in range(2))
    with pytest.raises(AmbiguousRoute, match="2 tenants"):
        route(mail("shop@example.com"))
    first.credential.is_active = False
    first.credential.save()
    second.credential.tenant.is_active = False
    second.credential.tenant.save()
    # What is switched off must not make its mail go out through somebody else.
    with pytest.raises(AmbiguousRoute):
        route(mail("shop@example.com"))


def test_within_a_tenant_the_sender_decides_then_the_priority():
    tenant = TenantFactory()
    exact, domain, low, high = (
        CredentialFactory(tenant=tenant, priority=priority) for priority in (9, 8, 1, 2)
    )
    SenderFactory(credential=exact, address="shop@example.com")
    SenderFactory(credential=domain, address="@example.com")
    assert route(mail("SHOP@Example.COM", tenant)) == exact
    assert route(mail("Anna <anna@example.com>", tenant)) == domain
    assert route(mail("x@elsewhere.example", tenant)) == low
    assert high != low


def test_two_accounts_at_one_provider():
    """Important mail and marketing: each address goes out on its own account."""
    tenant, server = TenantFactory(), MailServerFactory()
    chosen = {}
    for name in ("important", "marketing"):
        credential = CredentialFactory(tenant=tenant, server=server, username=name)
        SenderFactory(credential=credential, address=f"{name}@example.com")
        chosen[name] = credential
    for name, credential in chosen.items():
        assert route(mail(f"{name}@example.com", tenant)) == credential
    with pytest.raises(
        SenderNotAllowed,
        match=r"may not send as ceo@.*Enter it as a sender of one of them, or correct From\.$",
    ):
        route(mail("ceo@example.com", tenant))


def test_subdomains_are_not_covered():
    sender = SenderFactory(address="@example.com")
    with pytest.raises(SenderNotAllowed):
        route(mail("a@sub.example.com", sender.credential.tenant))


def test_international_domains_are_compared_in_one_form():
    sender = SenderFactory(address="@BÜCHER.example")
    assert route(mail("a@xn--bcher-kva.example")) == sender.credential
    assert route(mail("a@bücher.example")) == sender.credential


def test_default_from_replaces_the_sites_and_nothing_else(settings):
    settings.DEFAULT_FROM_EMAIL = "site@example.org"
    credential = CredentialFactory(default_from="Bob <bob@example.com>")
    SenderFactory(credential=credential, address="shop@example.com")
    message = mail(None, credential.tenant)
    # The default From is no exception from the senders.
    with pytest.raises(SenderNotAllowed):
        route(message)
    SenderFactory(credential=credential, address="bob@example.com")
    envelope = render(message, route(message))
    assert envelope.sender == "bob@example.com"
    assert b"From: Bob <bob@example.com>\r\n" in envelope.content
    assert message.from_email == "site@example.org"  # the caller's own stays as it is
    message = mail("shop@example.com", credential.tenant)
    assert render(message, route(message)).sender == "shop@example.com"


def test_sites_own_senders():
    site = CredentialFactory(tenant=None)
    SenderFactory(credential=site, address="@example.org")
    assert route(mail("a@example.org")) == site
    with pytest.raises(SenderNotAllowed):
        route(mail("a@elsewhere.example"))


def test_a_batch_asks_once_per_tenant(django_assert_num_queries):
    tenants = [CredentialFactory().tenant for _ in range(3)]
    router = Router()
    with django_assert_num_queries(3):
        for number in range(30):
            router.resolve(mail(tenant=tenants[number % 3]))


def test_threads_do_not_see_each_others_tenant():
    def work(slug):
        with use_tenant(slug):
            return [current_tenant() for _ in range(100)]

    slugs = [f"t{number}" for number in range(8)]
    with use_tenant("main"), ThreadPoolExecutor(8) as executor:
        for slug, seen in zip(slugs, executor.map(work, slugs), strict=True):
            assert set(seen) == {slug}
        assert executor.submit(current_tenant).result() is None


def test_async_tasks_do_not_see_each_others_tenant():
    async def work(slug):
        with use_tenant(slug):
            await asyncio.sleep(0)
            return current_tenant(), await sync_to_async(current_tenant)()

    async def main():
        return await asyncio.gather(*(work(f"t{number}") for number in range(8)))

    assert asyncio.run(main()) == [(f"t{number}",) * 2 for number in range(8)]


# The request's tenant


def tenant_of(request):
    return request.headers.get("X-Tenant")


async def async_tenant_of(request):
    return tenant_of(request)


@pytest.mark.parametrize("header", [{"x-tenant": "bob"}, {}])
def test_middleware(settings, header):
    settings.MAILPOOL = {"REQUEST_TENANT": f"{__name__}.tenant_of"}
    middleware = TenantMiddleware(lambda request: HttpResponse(str(current_tenant())))
    response = middleware(RequestFactory().get("/", headers=header))
    assert response.content.decode() == header.get("x-tenant", "None")
    assert current_tenant() is None


@pytest.mark.parametrize("name", ["tenant_of", "async_tenant_of"])
def test_middleware_under_asgi(settings, name):
    settings.MAILPOOL = {"REQUEST_TENANT": f"{__name__}.{name}"}

    async def view(request):
        return HttpResponse(str(current_tenant()))

    middleware = TenantMiddleware(view)
    response = asyncio.run(middleware(RequestFactory().get("/", headers={"x-tenant": "bob"})))
    assert response.content == b"bob"


def test_middleware_that_is_not_configured(settings):
    settings.MAILPOOL = {}
    with pytest.raises(MiddlewareNotUsed):
        TenantMiddleware(lambda request: HttpResponse())
    settings.MAILPOOL = {"REQUEST_TENANT": "no.such.module"}
    with pytest.raises(ImproperlyConfigured, match="REQUEST_TENANT"):
        TenantMiddleware(lambda request: HttpResponse())
    settings.MAILPOOL = {"REQUEST_TENANT": f"{__name__}.async_tenant_of"}
    with pytest.raises(ImproperlyConfigured, match="ASGI"):
        TenantMiddleware(lambda request: HttpResponse())(RequestFactory().get("/"))


def test_empty_slug_of_a_request_is_not_no_tenant():
    CredentialFactory(tenant=None)
    with use_request_tenant(""), pytest.raises(NoRoute):
        route(mail())


@pytest.fixture
def named_by_name(settings):
    """Tenants are found by a field that is not unique."""
    settings.MAILPOOL = {**settings.MAILPOOL, "TENANT_SLUG_FIELD": "name"}


@pytest.mark.usefixtures("named_by_name")
def test_slug_of_two_tenants_is_ambiguous_even_if_one_can_not_send():
    CredentialFactory(tenant__name="Acme")
    assert route(mail(tenant="Acme")).tenant.name == "Acme"
    TenantFactory(name="Acme")
    with pytest.raises(AmbiguousRoute, match="several tenants"):
        route(mail(tenant="Acme"))


def test_slugs_are_compared_as_they_are_written():
    """Also by a database that would find one in another spelling."""
    CredentialFactory(tenant__slug="acme")
    for other in ("Acme", "ACME", "acm\u00e9", "acme "):
        with pytest.raises(NoRoute):
            route(mail(tenant=other))


def test_something_else_with_the_same_key_is_no_tenant():
    tenant = CredentialFactory().tenant
    router = Router()
    assert router.resolve(mail(tenant=tenant)).tenant == tenant
    with pytest.raises(NoRoute, match="is not a tenant"):
        router.resolve(mail(tenant=MailServer(pk=tenant.pk)))
    with pytest.raises(NoRoute, match="is not a tenant"):
        router.resolve(mail(tenant=["acme"]))


def failing_view(request):
    raise RuntimeError("a bug")


def suspicious_view(request):
    raise SuspiciousOperation("a strange request")


urlpatterns = [path("bug/", failing_view), path("strange/", suspicious_view)]


def always_bob(request):
    return "bob"


class Reporter(logging.Handler):
    """In the place of Django's, which mails the administrators: for whom would it send?"""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.tenants = []

    def emit(self, record):
        self.tenants.append(current_tenant())


@pytest.mark.parametrize("page", ["/bug/", "/strange/"])
@pytest.mark.parametrize("way", ["sync", "async"])
def test_reports_of_failed_requests_are_the_sites_business(settings, page, way):
    """They hold settings and cookies; a tenant's Sent folder is no place for them."""
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = ["mailpool.middleware.TenantMiddleware"]
    settings.MAILPOOL = {**settings.MAILPOOL, "REQUEST_TENANT": f"{__name__}.always_bob"}
    reporter = Reporter()
    loggers = [
        logging.getLogger(name)
        for name in ("django.request", "django.security.SuspiciousOperation")
    ]
    for logger in loggers:
        logger.addHandler(reporter)
    try:
        if way == "sync":
            Client(raise_request_exception=False).get(page)
        else:
            async_to_sync(AsyncClient(raise_request_exception=False).get)(page)
    finally:
        for logger in loggers:
            logger.removeHandler(reporter)
    assert reporter.tenants
    assert set(reporter.tenants) == {None}
    assert current_tenant() is None
