"""Whatever is wrong: a clear error that says so, and nothing is sent."""

from __future__ import annotations

import datetime
import smtplib
import socket
import ssl

import pytest
from django.core.mail import EmailMessage
from django.db import connection

from mailpool import exceptions
from mailpool.models import Credential
from tests.factories import CredentialFactory, MailServerFactory, SenderFactory, TenantFactory
from tests.scripted import ScriptedServer
from tests.smtpd import Authority, MailHost

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("real_mail")]

KEY = "bWFpbHBvb2wgdGVzdCBrZXksIG5vdCBhIHNlY3JldCE="
OTHER_KEY = "YW5vdGhlciBrZXkgZm9yIHRlc3RzLCAzMiBieXRlcyE="


def message(tenant=None, sender="bob@example.com", to=("a@example.com",), **kwargs):
    mail = EmailMessage(
        kwargs.pop("subject", "hello"), kwargs.pop("body", "text"), sender, to, **kwargs
    )
    if tenant is not None:
        mail.tenant = tenant
    return mail


def send_directly(mail):
    """Without EmailMessage.send(), which looks for recipients itself."""
    from mailpool.backends import EmailBackend

    return EmailBackend().send_messages([mail])


@pytest.fixture
def bob(mail_host, make_credential):
    return make_credential(mail_host, "bob")


@pytest.fixture
def nothing_sent(mail_host):
    yield
    assert mail_host.delivered == []


def fails(error, match, mail):
    with pytest.raises(error, match=match) as caught:
        send_directly(mail)
    result = mail.mailpool_result
    assert result.status in ("failed", "refused")
    assert result.error is caught.value
    return result


# Secrets


def test_no_key(bob, settings, nothing_sent):
    settings.MAILPOOL = {"ENCRYPTION_KEYS": []}
    fails(exceptions.SecretError, "mailpool_generate_key", message("bob"))


def test_wrong_key(bob, settings, nothing_sent):
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [OTHER_KEY]}
    fails(exceptions.SecretError, "is not among the configured keys", message("bob"))


def test_ciphertext_moved_between_rows(bob, mail_host, make_credential, nothing_sent):
    mary = make_credential(mail_host, "mary")
    with connection.cursor() as cursor:
        table = Credential._meta.db_table
        cursor.execute(f"SELECT username, password FROM {table}")
        stored = dict(cursor.fetchall())
        cursor.execute(
            f"UPDATE {table} SET password = %s WHERE username = %s", [stored["bob"], "mary"]
        )
    fails(exceptions.SecretError, "entered for another row", message("mary"))
    assert mary.tenant.slug == "mary"


def test_no_password_stored(bob, nothing_sent):
    bob.password = ""
    bob.save()
    fails(exceptions.SecretError, "No password is stored", message("bob"))


# Routes


def test_unknown_tenant(bob, nothing_sent):
    fails(exceptions.NoRoute, "There is no tenant 'nobody'", message("nobody"))


@pytest.mark.parametrize("what", ["tenant", "server", "credential"])
def test_inactive(bob, nothing_sent, what):
    row = {"tenant": bob.tenant, "server": bob.server, "credential": bob}[what]
    row.is_active = False
    row.save()
    fails(exceptions.NoRoute, "inactive", message("bob"))
    fails(exceptions.NoRoute, "inactive", message(bob.tenant))


def test_tenant_without_credential(bob, mail_host, make_credential, nothing_sent):
    make_credential(mail_host, username="site")
    TenantFactory(slug="mary")
    fails(exceptions.NoRoute, "it has none", message("mary"))


def test_ambiguous_sender(bob, mail_host, make_credential, nothing_sent):
    mary = make_credential(mail_host, "mary")
    for credential in (bob, mary):
        SenderFactory(credential=credential, address="shop@example.com")
    fails(exceptions.AmbiguousRoute, "2 tenants", message(sender="Shop@Example.com"))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"sender": "ceo@example.com"},
        {"sender": "bob@example.com", "headers": {"From": "ceo@example.com"}},
        {"sender": "ceo@example.com", "headers": {"From": "bob@example.com"}},
    ],
)
def test_forbidden_sender(bob, nothing_sent, kwargs):
    SenderFactory(credential=bob, address="bob@example.com")
    fails(exceptions.SenderNotAllowed, "may not send as", message("bob", **kwargs))


def test_no_route_at_all(nothing_sent, mail_host):
    fails(exceptions.NoRoute, "names no tenant", message())


# Connections


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def credential_at(**server):
    return CredentialFactory(
        tenant__slug="bob",
        server=MailServerFactory(**{"timeout": 1, "host": "localhost", **server}),
    )


def test_unreachable_host():
    port = closed_port()
    credential_at(port=port)
    fails(ConnectionRefusedError, f"Could not connect to localhost:{port}", message("bob"))


def test_host_that_does_not_exist():
    credential_at(host="no-such-host.invalid")
    fails(socket.gaierror, "'no-such-host.invalid' could not be found", message("bob"))


def test_tls_spoken_to_a_clear_text_port(authority):
    with MailHost(authority) as host:
        credential_at(port=host.port, security="tls", ca_certificate=authority.pem)
        fails(ssl.SSLError, "speaks clear text on this port: choose STARTTLS", message("bob"))
        assert host.delivered == []


def test_clear_text_spoken_to_a_tls_port(authority):
    with MailHost(authority, security="tls") as host:
        credential_at(port=host.port, ca_certificate=authority.pem)
        fails(smtplib.SMTPServerDisconnected, "implicit TLS", message("bob"))
        assert host.delivered == []


def test_expired_certificate(authority):
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    context = authority.server_context("localhost", not_after=past)
    with MailHost(authority, context=context) as host:
        credential_at(port=host.port, ca_certificate=authority.pem)
        match = f"localhost:{host.port} was not accepted: certificate has expired"
        fails(ssl.SSLCertVerificationError, match, message("bob"))
        assert host.logins == []


def test_certificate_of_another_authority(authority):
    with MailHost(Authority()) as host:
        credential_at(port=host.port, ca_certificate=authority.pem)
        fails(ssl.SSLCertVerificationError, "was not accepted", message("bob"))
        assert host.logins == []


def test_self_signed_certificate():
    with MailHost(Authority()) as host:
        credential_at(port=host.port)
        fails(ssl.SSLCertVerificationError, "was not accepted", message("bob"))
        assert host.logins == []


def test_certificate_for_another_name(authority):
    with MailHost(authority, names=("mail.example.com",)) as host:
        credential_at(port=host.port, ca_certificate=authority.pem)
        fails(ssl.SSLCertVerificationError, "Hostname mismatch", message("bob"))
        assert host.logins == []


def test_wrong_password_and_the_pause_after_it(bob, mail_host, nothing_sent):
    bob.password = "wrong"
    bob.save()
    for _ in range(3):
        result = fails(smtplib.SMTPAuthenticationError, "535", message("bob"))
        assert result.status == "failed"
    assert mail_host.refused_logins == 1  # the provider is not hammered


def test_corrected_password_is_used_at_once(bob, mail_host):
    bob.password = "wrong"
    bob.save()
    fails(smtplib.SMTPAuthenticationError, "535", message("bob"))
    bob.password = "correct-horse-battery"
    bob.save()
    assert send_directly(message("bob")) == 1


def test_no_starttls_offered():
    with ScriptedServer() as server:
        credential_at(port=server.port, host="127.0.0.1", security="starttls")
        match = "does not offer STARTTLS, and mail is not sent in clear text"
        fails(smtplib.SMTPNotSupportedError, match, message("bob"))
        assert "AUTH" not in server.verbs()
        assert "MAIL" not in server.verbs()


def test_no_login_offered():
    with ScriptedServer(extensions=["PIPELINING"]) as server:
        credential_at(port=server.port, host="127.0.0.1", security="plain")
        fails(smtplib.SMTPNotSupportedError, "offers no login", message("bob"))
        assert "MAIL" not in server.verbs()


def test_password_is_not_sent_in_clear_text_to_another_machine(monkeypatch):
    """Where the form's check was gone around, the connection's own peer decides."""
    from mailpool.smtp import Handshake

    monkeypatch.setattr(Handshake, "_peer_is_this_machine", lambda self: False)
    with ScriptedServer() as server:
        credential_at(port=server.port, host="127.0.0.1", security="plain")
        fails(smtplib.SMTPNotSupportedError, "not sent to .* in clear text", message("bob"))
        assert "AUTH" not in server.verbs()


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n", b"SSH-2.0-OpenSSH\r\n"])
def test_reply_that_is_not_smtp(greeting):
    with ScriptedServer() as server:
        server.when("greeting").sends(greeting)
        credential_at(port=server.port, host="127.0.0.1", security="plain")
        fails(smtplib.SMTPConnectError, "which is not SMTP", message("bob"))


def test_text_injected_before_starttls(authority):
    with ScriptedServer(security="starttls", context=authority.server_context()) as server:
        server.when("STARTTLS").sends(b"220 go ahead\r\n250-injected\r\n250 AUTH PLAIN\r\n")
        credential_at(port=server.port, ca_certificate=authority.pem)
        match = "ahead of the TLS handshake"
        fails(smtplib.SMTPServerDisconnected, match, message("bob"))
        assert "AUTH" not in server.verbs()


# Messages


@pytest.mark.parametrize(
    "kwargs",
    [
        {"subject": "hello\nBcc: victim@example.com"},
        {"sender": "bob@example.com\nBcc: victim@example.com"},
        {"to": ["a@example.com\nBcc: victim@example.com"]},
        {"to": ["a@example.com>\r\nRCPT TO:<victim@example.com"]},
        {"headers": {"X-Header": "one\nBcc: victim@example.com"}},
    ],
)
def test_header_injection(bob, nothing_sent, kwargs):
    fails(ValueError, None, message("bob", **kwargs))


def test_no_recipients(bob, nothing_sent):
    fails(exceptions.InvalidMessage, "no recipients", message("bob", to=[]))


@pytest.mark.parametrize("address", ["not an address", "a@", "@example.com", "a@b@c"])
def test_recipient_that_is_no_address(bob, nothing_sent, address):
    mail = message("bob", to=["a@example.com"])
    mail.to.append(address)
    fails(ValueError, "not a mail address|not a single", mail)


def test_international_domain_goes_as_ascii(bob, mail_host):
    send_directly(message("bob", sender="bob@bücher.example", to=["a@bücher.example"]))
    (delivered,) = mail_host.delivered
    assert delivered.sender == "bob@xn--bcher-kva.example"
    assert delivered.recipients == ["a@xn--bcher-kva.example"]


def test_international_address_with_smtputf8(bob, mail_host):
    send_directly(message("bob", to=["jörg@example.com"]))
    (delivered,) = mail_host.delivered
    assert delivered.recipients == ["jörg@example.com"]
    assert "SMTPUTF8" in delivered.mail_options
    assert "To: jörg@example.com\r\n".encode() in delivered.content
    # The next message on the same connection is an ordinary one again.
    send_directly(message("bob"))
    assert "SMTPUTF8" not in mail_host.delivered[1].mail_options
    assert mail_host.delivered[1].connection == delivered.connection


def test_international_address_without_smtputf8(authority, make_credential):
    with MailHost(authority, smtputf8=False) as host:
        make_credential(host, "bob")
        mail = message("bob", to=["jörg@example.com"])
        fails(smtplib.SMTPNotSupportedError, "SMTPUTF8", mail)
        assert send_directly(message("bob")) == 1
        assert len(host.delivered) == 1
        assert host.connections == 1


@pytest.mark.parametrize(
    "body",
    [
        "one\n.\ntwo",
        "one\r\n.\r\nMAIL FROM:<evil@example.com>\r\n",
        ".",
        ".\n",
        "one\r.\rtwo",
        "one\n.\rtwo",
        "one\r.\ntwo",
        "..\n...",
    ],
)
def test_bare_line_ends_and_lone_dots_stay_one_message(bob, mail_host, body):
    send_directly(message("bob", body=body))
    send_directly(message("bob", body="next"))
    first, second = mail_host.delivered
    # Never a CR or LF alone, which is where servers disagree about the end of a message.
    assert first.content.replace(b"\r\n", b"").count(b"\n") == 0
    assert first.content.replace(b"\r\n", b"").count(b"\r") == 0
    text = first.message.get_content().replace("\r\n", "\n").strip("\n")
    assert text == body.replace("\r\n", "\n").replace("\r", "\n").strip("\n")
    assert second.connection == first.connection


def test_oversized_message(authority, make_credential):
    with MailHost(authority, size=2000) as host:
        make_credential(host, "bob")
        result = fails(
            smtplib.SMTPSenderRefused, "takes 2000", message("bob", body="x" * 70 + "\n" * 3000)
        )
        assert (result.status, result.code) == ("refused", 552)
        assert send_directly(message("bob")) == 1  # the connection is as good as before
        assert host.connections == 1


def test_eight_bit_text_is_announced(bob, mail_host):
    send_directly(message("bob", subject="Grüße", body="Grüße"))
    (delivered,) = mail_host.delivered
    assert delivered.message.get_content().strip() == "Grüße"
    if not delivered.content.isascii():
        assert "BODY=8BITMIME" in delivered.mail_options


def test_refused_recipients_are_told(bob, mail_host):
    mail = message("bob", to=["refused@example.com", "a@example.com"])
    assert send_directly(mail) == 1
    assert mail.mailpool_result.refused == {"refused@example.com": (550, "5.1.1 no such user")}
    mail = message("bob", to=["refused@example.com"])
    fails(smtplib.SMTPRecipientsRefused, "no such user", mail)
    assert mail.mailpool_result.status == "refused"
