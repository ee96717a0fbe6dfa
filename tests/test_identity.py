"""Who a message goes out as: sender policy and bounce address, and what arrives of them."""

from __future__ import annotations

import copy

import pytest
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.db import IntegrityError, transaction

from mailpool import verification
from mailpool.backends import EmailBackend
from mailpool.exceptions import AmbiguousRoute, SenderNotAllowed
from mailpool.models import Credential
from mailpool.routing import Router
from tests.factories import CredentialFactory, SenderFactory, TenantFactory

pytestmark = pytest.mark.django_db(transaction=True)

MARY = "Mary <mary@home.example>"


def mail(sender=MARY, tenant="shop", **kwargs):
    message = EmailMessage("hello", "text", sender, ["a@example.com"], **kwargs)
    if tenant:
        message.tenant = tenant
    return message


@pytest.fixture
def make(make_credential, mail_host):
    """A credential of the tenant "shop" that rewrites, with these senders."""

    def make(*senders, slug="shop", **kwargs):
        kwargs.setdefault("sender_policy", "rewrite")
        credential = make_credential(mail_host, slug, **kwargs)
        for address in senders:
            SenderFactory(credential=credential, address=address)
        return credential

    return make


@pytest.fixture
def arrives(mail_host):
    """Send a message, and give what the server took."""

    def send(message):
        before = copy.deepcopy(message.__dict__)
        assert EmailBackend().send_messages([message]) == 1
        message.__dict__.pop("mailpool_result")
        assert message.__dict__ == before  # the caller's own stays as it is
        return mail_host.delivered[-1]

    return send


def headers(delivered, *names):
    return tuple(delivered.message[name] for name in names)


# From


def test_a_foreign_from_is_refused_by_default(make, mail_host):
    make("shop@shop.example", sender_policy=Credential().sender_policy)
    with pytest.raises(SenderNotAllowed, match=r"may not send as mary@home\.example"):
        EmailBackend().send_messages([mail()])
    assert mail_host.connections == 0


def test_a_foreign_from_is_rewritten(make, arrives):
    make("shop@shop.example", default_from="Shop <shop@shop.example>")
    got = arrives(mail())
    assert headers(got, "From", "Reply-To", "Sender") == (
        "Mary via Shop <shop@shop.example>",
        MARY,
        None,
    )
    assert got.sender == "shop@shop.example"
    assert len(got.message.get_all("From")) == 1


@pytest.mark.parametrize("sender", ["Shop@Shop.example", "Anna <anna@team.example>"])
def test_what_it_may_send_as_stays(make, arrives, sender):
    make("shop@shop.example", "@team.example", default_from="Shop <shop@shop.example>")
    got = arrives(mail(sender))
    assert headers(got, "From", "Reply-To") == (sender, None)
    assert got.sender in sender


@pytest.mark.parametrize(
    ("author", "own", "shown"),
    [
        ("Mary <mary@home.example>", "Shop <shop@shop.example>", "Mary via Shop"),
        ("mary@home.example", "Shop <shop@shop.example>", "mary via Shop"),
        ("Mary <mary@home.example>", "shop@shop.example", '"Mary via shop.example"'),
        ('"Mary, Dr." <mary@home.example>', "Shop <shop@shop.example>", '"Mary, Dr. via Shop"'),
        ("Märy <mary@home.example>", "Bücher <shop@shop.example>", "Märy via Bücher"),
        ("shop <mary@home.example>", "Shop <shop@shop.example>", "Shop"),
        ('"a <boss@bank.example>" <m@home.example>', "S <shop@shop.example>", None),
    ],
)
def test_the_authors_name_stays_readable(make, arrives, author, own, shown):
    make(default_from=own)
    got = arrives(mail(author))
    if shown:
        assert str(got.message["From"]) == f"{shown} <shop@shop.example>"
    (address,) = got.message["From"].addresses
    assert address.addr_spec == "shop@shop.example"
    (reply,) = got.message["Reply-To"].addresses
    assert reply.addr_spec in author


def test_own_address_is_the_default_from_or_else_the_first_full_sender(make, arrives):
    credential = make("@team.example", "b@shop.example", "a@shop.example")
    assert arrives(mail()).sender == "a@shop.example"
    Credential.objects.filter(pk=credential.pk).update(default_from="b@shop.example")
    assert arrives(mail()).sender == "b@shop.example"


def test_without_a_list_its_own_address_is_the_only_one(make, arrives):
    make(default_from="Shop <shop@shop.example>")
    assert headers(arrives(mail()), "From")[0] == "Mary via Shop <shop@shop.example>"
    got = arrives(mail("Support <shop@shop.example>"))
    assert headers(got, "From", "Reply-To") == ("Support <shop@shop.example>", None)


@pytest.mark.parametrize("how", ["argument", "header"])
def test_a_reply_to_of_the_message_stays(make, arrives, how):
    make(default_from="Shop <shop@shop.example>")
    kwargs = {"reply_to": ["desk@home.example"]}
    if how == "header":
        kwargs = {"headers": {"Reply-To": "desk@home.example"}}
    got = arrives(mail(**kwargs))
    assert got.message.get_all("Reply-To") == ["desk@home.example"]


def test_a_sender_left_to_the_settings_has_no_author(make, arrives, settings):
    settings.DEFAULT_FROM_EMAIL = "Site <site@example.org>"
    make("shop@shop.example")
    got = arrives(mail(None))
    assert headers(got, "From", "Reply-To") == ("shop@shop.example", None)
    assert got.sender == "shop@shop.example"


def test_a_from_among_the_headers_is_rewritten(make, arrives):
    make("shop@shop.example", default_from="Shop <shop@shop.example>")
    got = arrives(mail("other@home.example", headers={"From": MARY, "X-Own": "1"}))
    assert headers(got, "From", "Reply-To", "X-Own") == (
        "Mary via Shop <shop@shop.example>",
        MARY,
        "1",
    )
    assert got.sender == "shop@shop.example"


def test_an_author_that_only_smtputf8_can_carry(make, arrives):
    make(default_from="Shop <shop@shop.example>")
    got = arrives(mail("Jürgen <jürgen@home.example>"))
    assert "SMTPUTF8" in got.mail_options
    assert "Reply-To: Jürgen <jürgen@home.example>\r\n".encode() in got.content
    assert "From: Jürgen via Shop <shop@shop.example>\r\n".encode() in got.content


# Sender


@pytest.mark.parametrize(
    ("given", "arrived"),
    [
        ("mary@home.example", None),  # nobody whom the account vouches for
        ("shop@shop.example", None),  # the same as From by then
        ("robot@shop.example", "robot@shop.example"),
        ("no address", None),
    ],
)
@pytest.mark.parametrize("name", ["Sender", "sender"])
def test_sender_header_when_from_is_rewritten(make, arrives, given, arrived, name):
    make("@shop.example", default_from="Shop <shop@shop.example>")
    assert headers(arrives(mail(headers={name: given})), "Sender") == (arrived,)


def test_a_foreign_sender_header_does_not_leave_a_rewriting_account(make, arrives):
    make("shop@shop.example")
    got = arrives(mail("shop@shop.example", headers={"Sender": "boss@bank.example"}))
    assert headers(got, "From", "Sender") == ("shop@shop.example", None)


def test_a_refusing_account_leaves_the_sender_header_alone(make, arrives):
    make(sender_policy="refuse")
    got = arrives(mail(headers={"Sender": "desk@home.example"}))
    assert headers(got, "From", "Sender") == (MARY, "desk@home.example")


# Which credential


def test_a_matching_sender_fits_better_than_rewriting(make):
    rewriting = make("shop@shop.example", priority=1)
    matching = CredentialFactory(tenant=rewriting.tenant, priority=9)
    SenderFactory(credential=matching, address="mary@home.example")
    assert Router().resolve(mail()) == matching
    assert Router().resolve(mail("eve@home.example")) == rewriting


def test_an_account_that_sends_as_anybody_fits_better_than_rewriting(make):
    rewriting = make("shop@shop.example", priority=1)
    anybody = CredentialFactory(tenant=rewriting.tenant, priority=9)
    assert Router().resolve(mail()) == anybody
    assert Router().resolve(mail("shop@shop.example")) == rewriting


def test_among_several_that_rewrite_the_priority_decides(make):
    first = make("shop@shop.example", priority=2)
    second = CredentialFactory(tenant=first.tenant, priority=1, sender_policy="rewrite")
    SenderFactory(credential=second, address="two@shop.example")
    assert Router().resolve(mail()) == second


@pytest.mark.parametrize("tenant", ["bob", None])
def test_it_is_never_rewritten_into_another_tenants(make, tenant):
    make("shop@shop.example")
    make("site@shop.example", slug=None)
    bob = SenderFactory(credential__tenant=TenantFactory(slug="bob"), address="bob@bob.example")
    if tenant:
        with pytest.raises(SenderNotAllowed, match="Tenant 'bob' may not"):
            Router().resolve(mail(MARY, tenant))
    # Without a tenant, the address is Bob's, whoever else would take it.
    assert Router().resolve(mail("bob@bob.example", tenant)) == bob.credential
    SenderFactory(address="bob@bob.example")
    if not tenant:
        with pytest.raises(AmbiguousRoute):
            Router().resolve(mail("bob@bob.example", tenant))


def test_mail_of_no_tenant_is_rewritten_by_the_site(make, arrives):
    make("shop@shop.example")
    make("site@site.example", slug=None)
    assert headers(arrives(mail(tenant=None)), "From") == (
        '"Mary via site.example" <site@site.example>',
    )


@pytest.mark.parametrize("senders", [[], ["@shop.example"]])
def test_without_an_address_of_its_own_nothing_is_sent(make, mail_host, senders):
    credential = make(*senders)
    with pytest.raises(SenderNotAllowed):
        EmailBackend().send_messages([mail()])
    with pytest.raises(ValidationError, match="an address of its own"):
        credential.check_senders(credential.sender_addresses)
    assert "an address of its own" in verification.switched_off(credential)
    assert mail_host.connections == 0


def test_a_default_from_that_the_senders_leave_out_rewrites_nothing(make):
    make("shop@shop.example", default_from="boss@bank.example")
    with pytest.raises(SenderNotAllowed):
        Router().resolve(mail())


def test_a_policy_that_is_none_is_not_stored(make):
    credential = make("shop@shop.example")
    with pytest.raises(IntegrityError), transaction.atomic():
        Credential.objects.filter(pk=credential.pk).update(sender_policy="anything")


# The envelope


def test_bounce_address_is_the_envelopes_sender_and_no_header(make, arrives):
    make("shop@shop.example", sender_policy="refuse", bounce_address="bounces@mail.example")
    got = arrives(mail("Shop <shop@shop.example>"))
    assert got.sender == "bounces@mail.example"  # which need not be among the senders
    assert headers(got, "From") == ("Shop <shop@shop.example>",)
    assert b"bounces@mail.example" not in got.content


def test_bounce_address_of_a_rewriting_account(make, arrives):
    make("shop@shop.example", bounce_address="bounces@mail.example")
    got = arrives(mail())
    assert got.sender == "bounces@mail.example"
    assert headers(got, "From") == ('"Mary via shop.example" <shop@shop.example>',)


def test_bounce_address_where_the_sender_is_left_to_the_settings(make, arrives, settings):
    settings.DEFAULT_FROM_EMAIL = "site@example.org"
    make(
        default_from="Shop <shop@shop.example>",
        sender_policy="refuse",
        bounce_address="bounces@mail.example",
    )
    for message in (mail(None), mail(None, headers={"From": "Shop <shop@shop.example>"})):
        got = arrives(message)
        assert got.sender == "bounces@mail.example"
        assert headers(got, "From") == ("Shop <shop@shop.example>",)


@pytest.mark.parametrize("policy", ["refuse", "rewrite"])
def test_a_bounce_address_of_the_messages_own_comes_first(make, arrives, policy):
    make(
        "@shop.example",
        sender_policy=policy,
        bounce_address="bounces@mail.example",
        default_from="shop@shop.example",
    )
    got = arrives(mail("bounces+42@shop.example", headers={"From": "shop@shop.example"}))
    assert got.sender == "bounces+42@shop.example"
    assert headers(got, "From") == ("shop@shop.example",)


def test_a_rewritten_message_keeps_an_envelope_that_is_allowed(make, arrives):
    make("@shop.example", default_from="shop@shop.example")
    got = arrives(mail("bounces+42@shop.example", headers={"From": MARY}))
    assert got.sender == "bounces+42@shop.example"
    assert headers(got, "From") == ('"Mary via shop.example" <shop@shop.example>',)


def test_the_messages_own_bounce_address_has_to_be_allowed(make, arrives):
    message = mail("eve@bank.example", headers={"From": "shop@shop.example"})
    credential = make("shop@shop.example", sender_policy="refuse", bounce_address="b@mail.example")
    with pytest.raises(SenderNotAllowed):
        Router().resolve(message)
    Credential.objects.filter(pk=credential.pk).update(sender_policy="rewrite")
    got = arrives(message)
    assert (got.sender, *headers(got, "From", "Reply-To")) == (
        "b@mail.example",
        "shop@shop.example",
        None,
    )
    Credential.objects.filter(pk=credential.pk).update(bounce_address="")
    assert arrives(message).sender == "shop@shop.example"


def test_verifying_offers_the_bounce_address(make, mail_host):
    credential = make("shop@shop.example", bounce_address="refused@mail.example")
    report = verification.verify_credential(credential)
    assert report.failure.key == "mail"
    result = verification.send_test_message(credential, "a@example.com")
    assert (result.status, result.code) == ("refused", 550)


@pytest.mark.parametrize("wrong", ["bounces", "@mail.example", "B <b@mail.example>", "a@b, c@d"])
def test_a_bounce_address_is_a_full_address_alone(make, wrong):
    credential = make("shop@shop.example")
    credential.bounce_address = wrong
    with pytest.raises(ValidationError) as caught:
        credential.full_clean()
    assert set(caught.value.error_dict) == {"bounce_address"}


# Elsewhere


def test_capture_shows_what_would_have_been_sent(make, mailpool_outbox):
    make(default_from="Shop <shop@shop.example>", bounce_address="bounces@mail.example")
    mail().send()
    (captured,) = mailpool_outbox
    assert captured.envelope.sender == "bounces@mail.example"
    assert b"From: Mary via Shop <shop@shop.example>\r\n" in captured.envelope.content
    assert captured.message.from_email == MARY


def test_admin_asks_for_an_address_of_its_own(client, make, django_user_model):
    from tests.test_admin import CREDENTIALS, credential_data, errors, inline

    client.force_login(django_user_model.objects.create_superuser("root", password="x"))
    credential = make(sender_policy="refuse")
    url = f"{CREDENTIALS}{credential.pk}/change/"
    data = credential_data(credential, sender_policy="rewrite", bounce_address=" b@mail.example ")
    assert "an address of its own" in errors(client.post(url, data))
    domain = inline("senders", {"address": "@shop.example"})
    assert "an address of its own" in errors(client.post(url, {**data, **domain}))
    full = inline("senders", {"address": "shop@shop.example"})
    assert client.post(url, {**data, **full}).status_code == 302
    credential.refresh_from_db()
    assert (credential.sender_policy, credential.bounce_address) == ("rewrite", "b@mail.example")


def test_the_pages_of_server_and_tenant_leave_a_rewriting_account_its_address(
    client, make, django_user_model
):
    from tests.test_admin import errors, inline

    client.force_login(django_user_model.objects.create_superuser("root", password="x"))
    credential = make("@shop.example", default_from="shop@shop.example")
    row = {"id": credential.pk, "server": credential.server_id, "username": "shop", "priority": 1}
    data = {"name": "Shop", "slug": "shop"}
    url = f"/admin/mailpool/tenant/{credential.tenant_id}/change/"

    def post(**changes):
        rows = inline("mailpool_credentials", {**row, **changes}, initial=1)
        return client.post(url, {**data, **rows})

    assert "an address of its own" in errors(post(default_from=""))
    assert post(default_from="other@shop.example").status_code == 302
