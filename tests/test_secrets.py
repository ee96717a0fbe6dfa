"""No password in any log, repr, exception, debug page, admin page, fixture or report."""

from __future__ import annotations

import base64
import copy
import io
import json
import logging
import pickle
import smtplib
import traceback

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.test import RequestFactory
from django.views.debug import ExceptionReporter, technical_500_response

import mailpool
from mailpool import delivery, verification
from mailpool.admin.credentials import CredentialForm
from mailpool.backends import EmailBackend
from mailpool.exceptions import ClientCertificateError, SecretError
from mailpool.models import Credential
from mailpool.secret import Secret
from tests.clients import CertificateServer, ClientAuthority
from tests.factories import CredentialFactory, MailServerFactory
from tests.scripted import ScriptedServer

pytestmark = pytest.mark.django_db

PASSWORD = "Zx81-very.secret/pass"
TRACES = [
    PASSWORD,
    base64.b64encode(PASSWORD.encode()).decode(),
    base64.b64encode(b"\0bob\0" + PASSWORD.encode()).decode(),
]


def assert_silent(text):
    for trace in TRACES:
        assert trace not in text, text[max(0, text.index(trace) - 200) :][:400]


@pytest.fixture
def all_logs():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture
def server():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def bob(server):
    return CredentialFactory(
        tenant__slug="bob",
        username="bob",
        password=PASSWORD,
        server=MailServerFactory(host="127.0.0.1", port=server.port, security="plain", timeout=1),
    )


def message():
    made = EmailMessage("hello", "text", "bob@example.com", ["a@example.com"])
    made.tenant = "bob"
    return made


def everything_about(error):
    """As a debug page and a careless logger would show it, local variables included."""
    request = RequestFactory().get("/")
    page = ExceptionReporter(request, type(error), error, error.__traceback__)
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    return page.get_traceback_html() + page.get_traceback_text() + "".join(shown.format())


BREAKS = {
    "in AUTH, reset": lambda server: server.when("AUTH").resets(),
    "in AUTH, garbage": lambda server: server.when("AUTH").sends(b"what?\r\n"),
    "in AUTH, echo": lambda server: server.when("AUTH")._does(lambda talk: talk.write(talk.line)),
    "in AUTH, refused": lambda server: server.when("AUTH").says("535 5.7.8 no"),
    "in MAIL": lambda server: server.when("MAIL").resets(),
    "in DATA": lambda server: server.when("end of data").resets(),
    "in the greeting": lambda server: server.when("greeting").sends(b"SSH-2.0\r\n"),
}


@pytest.mark.parametrize("where", BREAKS)
def test_debug_page_logs_and_exceptions_are_silent(server, bob, all_logs, settings, where):
    settings.DEBUG = True
    BREAKS[where](server)
    with pytest.raises((smtplib.SMTPException, OSError)) as caught:
        EmailBackend().send_messages([message()])
    report = everything_about(caught.value)
    assert "smtp/session.py" in report  # it does show our frames
    assert_silent(report)
    assert_silent(all_logs.getvalue())


def test_server_that_repeats_what_it_was_sent(server, bob, all_logs):
    def parrot(talk):
        talk.write(b"535 5.7.8 wrong: " + talk.line + b" " + PASSWORD.encode() + b"\r\n")

    server.when("AUTH")._does(parrot)
    with pytest.raises(smtplib.SMTPAuthenticationError, match="hidden") as caught:
        EmailBackend().send_messages([message()])
    assert_silent(str(caught.value) + everything_about(caught.value) + all_logs.getvalue())


def test_failed_decryption_is_silent(bob, settings, all_logs):
    settings.MAILPOOL = {"ENCRYPTION_KEYS": []}
    with pytest.raises(SecretError) as caught:
        EmailBackend().send_messages([message()])
    assert_silent(everything_about(caught.value) + all_logs.getvalue())


def test_nothing_shows_it_in_a_repr(server, bob):
    params = delivery.session_params(bob)
    mail = message()
    EmailBackend().send_messages([mail])
    session = next(iter(delivery.get_pool()._all_slots())).session
    shown = [bob, bob.password, bob.__dict__, params, session, session.__dict__, mail.__dict__]
    shown += [mailpool.stats(), mailpool.stats().as_dict(), delivery.get_pool().__dict__]
    assert_silent("".join(map(repr, shown)))
    assert_silent("".join(map(str, shown[:1] + shown[3:])))
    assert bob.password == PASSWORD  # and it is there


def test_it_can_not_be_pickled_into_a_queue(bob):
    for secret in (bob.password, delivery.session_params(bob)):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(secret)
    # A row can, and holds ciphertext only.
    assert PASSWORD.encode() not in pickle.dumps(bob)
    assert pickle.loads(pickle.dumps(bob)).password == PASSWORD
    assert copy.deepcopy(bob).password == PASSWORD


def test_commands_and_fixtures_are_silent(server, bob, capfd, all_logs):
    out = io.StringIO()
    call_command("dumpdata", "mailpool", stdout=out)
    assert "ciphertext" not in out.getvalue()
    for command in (
        ["mailpool_check"],
        ["mailpool_check", "--json"],
        ["mailpool_status"],
        ["mailpool_status", "--json"],
        ["mailpool_rotate_keys", "--json"],
        [
            "mailpool_send_test",
            "--tenant",
            "bob",
            "--from",
            "from@example.com",
            "--to",
            "a@example.com",
            "--json",
        ],
    ):
        call_command(*command, stdout=out, stderr=out)
    assert_silent(out.getvalue() + all_logs.getvalue() + "".join(capfd.readouterr()))


def test_reports_are_silent(server, bob):
    server.when("AUTH").says("535 5.7.8 no")
    report = verification.verify_credential(bob)
    assert not report.ok
    assert_silent(json.dumps(report.as_dict()) + repr(report))
    result = verification.send_test_message(bob, "a@example.com")
    assert_silent(repr(result))


@pytest.fixture
def admin(client):
    user = get_user_model().objects.create_superuser("root", password="x")
    client.force_login(user)
    client.raise_request_exception = False
    return client


def test_admin_pages_are_silent(server, bob, admin):
    pages = [
        f"/admin/mailpool/credential/{bob.pk}/change/",
        f"/admin/mailpool/credential/{bob.pk}/history/",
        f"/admin/mailpool/credential/{bob.pk}/delete/",
        f"/admin/mailpool/mailserver/{bob.server.pk}/change/",
        f"/admin/mailpool/tenant/{bob.tenant.pk}/change/",
        "/admin/mailpool/credential/",
        "/admin/mailpool/mailserver/connections/",
    ]
    EmailBackend().send_messages([message()])
    for page in pages:
        response = admin.get(page)
        assert response.status_code == 200, page
        text = response.content.decode()
        assert_silent(text)
        assert str(bob.password_ciphertext) not in text


@pytest.mark.parametrize(
    "new",
    ["plain-Qz7x", "a\\Qz7x", "a\"b'Qz7x", "it'sQz7x", "bell\x07Qz7x", "Ä &%+Qz7x"],
)
@pytest.mark.parametrize("moment", ["making the form", "saving"])
@pytest.mark.parametrize("page", ["credential", "mailserver", "tenant"])
def test_debug_page_of_the_admin_hides_a_submitted_password(
    bob, admin, settings, monkeypatch, page, moment, new
):
    from django.db.models.signals import pre_save

    settings.DEBUG = True

    def fail(*args, **kwargs):
        raise RuntimeError("something went wrong")

    if page == "credential":
        url = f"/admin/mailpool/credential/{bob.pk}/change/"
        data = {
            "tenant": bob.tenant.pk,
            "server": bob.server.pk,
            "username": "bob",
            "password": new,
            "sender_policy": "refuse",
            "priority": 1,
            "senders-TOTAL_FORMS": 0,
            "senders-INITIAL_FORMS": 0,
        }
    else:
        row = bob.server if page == "mailserver" else bob.tenant
        url = f"/admin/mailpool/{page}/{row.pk}/change/"
        form = admin.get(url).context["adminform"].form
        data = {name: form.initial.get(name) or "" for name in form.fields}
        prefix = "credentials" if page == "mailserver" else "mailpool_credentials"
        inline = {
            "TOTAL_FORMS": 1,
            "INITIAL_FORMS": 1,
            "0-id": bob.pk,
            "0-server": bob.server.pk,
            "0-tenant": bob.tenant.pk,
            "0-username": "bob",
            "0-password": new,
            "0-priority": 3,
        }
        data |= {f"{prefix}-{name}": value for name, value in inline.items()}
    if moment == "saving":
        pre_save.connect(fail, sender=Credential)
    else:
        monkeypatch.setattr(CredentialForm, "_about_password", fail)
    try:
        response = admin.post(url, data)
    finally:
        pre_save.disconnect(fail, sender=Credential)
    assert response.status_code == 500
    text = response.content.decode()
    assert "something went wrong" in text
    assert "Qz7x" not in text
    assert_silent(text)


def test_debug_page_hides_the_keys(client, bob, admin, settings):
    settings.DEBUG = True
    good = "QSBrZXkgdGhhdCBpc24ndCB3b3J0aCBhbnl0aGluZyE="
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [good, good[:-4]]}

    bob.refresh_from_db()
    with pytest.raises(SecretError) as caught:
        bob.password  # noqa: B018
    report = technical_500_response(
        RequestFactory().get("/"), caught.type, caught.value, caught.tb.tb_next
    ).content.decode()
    assert "Encryption key number 2" in report
    assert good[:20] not in report


# The private key of a client certificate


@pytest.fixture(scope="module")
def clients():
    return ClientAuthority()


@pytest.fixture
def relay(authority, clients):
    with CertificateServer(authority, clients) as relay:
        yield relay
        delivery.get_pool().close()  # or the server would wait for its end


@pytest.fixture
def certified(relay, clients):
    issued = clients.issue("bob")
    return CredentialFactory(
        tenant__slug="bob",
        username="",
        password="",
        client_certificate=issued.certificate,
        client_key=issued.key,
        server=MailServerFactory(
            host="localhost",
            port=relay.port,
            security="starttls",
            ca_certificate=relay.authority.pem,
            timeout=5,
        ),
    )


def assert_no_key(text, key):
    lines = [line for line in key.splitlines() if not line.startswith("-----")]
    for trace in (*lines, lines[0][:20], lines[-1][-20:]):
        assert trace not in text, text[max(0, text.index(trace) - 200) :][:400]


KEY_BREAKS = {
    "in STARTTLS": lambda relay: relay.when("STARTTLS").says("220 go").then.resets(),
    "in EHLO": lambda relay: relay.when("EHLO", occurrence=2).resets(),
    "in AUTH": lambda relay: relay.when("AUTH").says("535 5.7.8 no"),
    "in MAIL": lambda relay: relay.when("MAIL").resets(),
}


@pytest.mark.parametrize("where", KEY_BREAKS)
def test_key_in_debug_pages_logs_and_exceptions(relay, certified, all_logs, settings, where):
    settings.DEBUG = True
    relay.extensions = ["AUTH EXTERNAL"]
    KEY_BREAKS[where](relay)
    with pytest.raises((smtplib.SMTPException, OSError)) as caught:
        EmailBackend().send_messages([message()])
    assert_no_key(everything_about(caught.value) + all_logs.getvalue(), certified.client_key)


@pytest.mark.parametrize("wrong", ["another's", "encrypted", "nonsense"])
def test_key_that_does_not_work_is_not_shown(relay, certified, clients, all_logs, wrong):
    from tests.smtp.test_client_certificates import encrypted

    key = {
        "another's": clients.issue("mary").key,
        "encrypted": encrypted(certified.client_key),
        "nonsense": "\n".join(["-----BEGIN PRIVATE KEY-----", "Qz7x" * 16, "-----END"]),
    }[wrong]
    key = Secret(key)  # this frame is in the report as well
    certified.client_key = key
    with pytest.raises(ValidationError) as invalid:
        certified.full_clean()
    assert_no_key(everything_about(invalid.value), key)
    certified.save()
    with pytest.raises(ClientCertificateError) as caught:
        EmailBackend().send_messages([message()])
    assert_no_key(everything_about(caught.value) + all_logs.getvalue(), key)
    report = verification.verify_credential(certified)
    assert_no_key(json.dumps(report.as_dict()) + repr(report), key)


def test_nothing_shows_the_key(relay, certified, admin, capfd):
    key = str(certified.client_key)
    EmailBackend().send_messages([message()])
    params = delivery.session_params(certified)
    session = next(iter(delivery.get_pool()._all_slots())).session
    shown = [certified, certified.client_key, certified.__dict__, params, session.__dict__]
    shown += [mailpool.stats().as_dict(), delivery.get_pool().__dict__]
    text = "".join(map(repr, shown))
    for page in (
        f"/admin/mailpool/credential/{certified.pk}/change/",
        f"/admin/mailpool/mailserver/{certified.server.pk}/change/",
        "/admin/mailpool/credential/",
        "/admin/mailpool/mailserver/connections/",
    ):
        text += admin.get(page).content.decode()
    out = io.StringIO()
    call_command("dumpdata", "mailpool", stdout=out)
    call_command("mailpool_status", "--json", stdout=out)
    call_command("mailpool_check", "--json", stdout=out)
    assert_no_key(text + out.getvalue() + "".join(capfd.readouterr()), key)
    assert certified.client_key == key  # and it is there
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(certified.client_key)


@pytest.mark.parametrize("moment", ["making the form", "checking the key", "saving"])
def test_debug_page_of_the_admin_hides_a_submitted_key(
    certified, clients, admin, settings, monkeypatch, moment
):
    from django.db.models.signals import pre_save

    from mailpool.models import credentials

    settings.DEBUG = True
    issued = clients.issue("bob")

    def fail(*args, **kwargs):
        pieces = [str(each).split() for each in args]  # what careless code may do with it
        raise RuntimeError("something went wrong") from (pieces and None)

    if moment == "saving":
        pre_save.connect(fail, sender=Credential)
    elif moment == "checking the key":
        monkeypatch.setattr(credentials, "validate_pair", fail)
    else:
        monkeypatch.setattr(CredentialForm, "_about_key", fail)
    data = {
        "tenant": certified.tenant.pk,
        "server": certified.server.pk,
        "client_certificate": issued.certificate,
        "client_key": issued.key.replace("\n", "\r\n"),  # as browsers send it
        "sender_policy": "refuse",
        "priority": 1,
        "senders-TOTAL_FORMS": 0,
        "senders-INITIAL_FORMS": 0,
    }
    try:
        response = admin.post(f"/admin/mailpool/credential/{certified.pk}/change/", data)
    finally:
        pre_save.disconnect(fail, sender=Credential)
    assert response.status_code == 500
    text = response.content.decode()
    assert "something went wrong" in text
    assert_no_key(text, issued.key)
