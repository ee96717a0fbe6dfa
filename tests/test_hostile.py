"""Servers, forms and fields that were made to do harm: what they say and hold goes nowhere."""

from __future__ import annotations

import base64
import contextlib
import logging
import smtplib
from dataclasses import replace

import pytest
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.core.management.base import CommandError

from mailpool import delivery, verification
from mailpool.admin.credentials import CredentialForm
from mailpool.backends import EmailBackend
from mailpool.exceptions import SecretError
from mailpool.forms import TenantCredentialForm
from mailpool.models import Credential, MailServer
from mailpool.smtp import Session, SessionParams
from mailpool.smtp.auth import hiding
from mailpool.text import one_line
from mailpool.vault.fields import SecretFormField
from tests.factories import CredentialFactory, MailServerFactory
from tests.scripted import ScriptedServer
from tests.test_secrets import everything_about

PASSWORD = r"Zx81-very.secret/pass\1"
TOKEN = "ya29.a0Ab-secret_token~" + "x" * 200


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def server():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def params(server):
    return SessionParams(
        credential_id="bob",
        host="127.0.0.1",
        port=server.port,
        security="plain",
        username="bob",
        password=PASSWORD,
        timeout=5,
    )


@pytest.fixture
def bob(server, db):
    return CredentialFactory(
        tenant__slug="bob",
        username="bob",
        password=PASSWORD,
        server=MailServerFactory(host="127.0.0.1", port=server.port, security="plain", timeout=5),
    )


def message():
    made = EmailMessage("hello", "text", "bob@example.com", ["a@example.com"])
    made.tenant = "bob"
    return made


# A server that repeats what it was told to log in

HEARD = [PASSWORD, encoded(PASSWORD.encode()), encoded(b"\0bob\0" + PASSWORD.encode())]
ECHO = " and ".join(HEARD)

REPEATS = {
    "in the greeting": ("greeting", f"554 5.7.1 last time you said {ECHO}"),
    "to EHLO": ("EHLO", f"550 5.7.1 last time you said {ECHO}"),
    "to MAIL": ("MAIL", f"550 5.7.1 you said {ECHO}"),
    "to RCPT": ("RCPT", f"550 5.7.1 you said {ECHO}"),
    "to DATA": ("DATA", f"554 5.7.1 you said {ECHO}"),
    "to the end": ("end of data", f"554-5.7.1 you\r\n554 said {ECHO}"),
    "goodbye to MAIL": ("MAIL", f"421 4.3.2 bye, {ECHO}"),
    "goodbye to the end": ("end of data", f"421 4.3.2 bye, {ECHO}"),
    "no SMTP": ("MAIL", f"{ECHO} is no reply"),
    "too many": ("MAIL", f"250 2.1.0 ok\r\n250 2.1.5 {ECHO}"),
    "success": ("end of data", f"250 2.0.0 queued as {ECHO}"),
}


def told_of_sending(mail):
    """What a debug page and a careless logger show of a failure."""
    try:
        EmailBackend().send_messages([mail])
    except smtplib.SMTPException as error:
        return everything_about(error)
    return ""


@pytest.mark.parametrize("where", REPEATS)
def test_a_login_that_the_server_repeats_at_any_time_is_not_passed_on(
    server, bob, caplog, settings, where
):
    settings.DEBUG = True
    caplog.set_level(logging.DEBUG)
    step, reply = REPEATS[where]
    server.when(step).says(reply)
    mail = message()
    told = told_of_sending(mail)
    result = mail.mailpool_result
    assert (result.status == "sent") == (where == "success")
    told += repr(result) + result.reply + caplog.text + "".join(map(repr, caplog.records))
    if where == "success":
        assert result.reply == "2.0.0 queued as (hidden) and (hidden) and (hidden)"
    elif where != "too many":
        assert "(hidden)" in told
    for secret in HEARD:
        assert secret not in told
        assert repr(secret)[1:-1] not in told


def test_a_goodbye_that_comes_later_repeats_nothing_either(server, params):
    """On an idle session, which is read when it is looked at."""
    server.when("NOOP").says(f"421 4.4.2 bye, {ECHO}").then.closes()
    session = Session.open(params)
    session.opened.write(b"NOOP\r\n")
    server.catch_up(0)
    assert not session.is_alive()
    assert "(hidden)" in session.closed_because
    assert "Zx81" not in session.closed_because


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"])
@pytest.mark.parametrize("padding", [True, False])
def test_whatever_was_said_in_the_login_is_hidden_afterwards(server, params, mechanism, padding):
    secret = PASSWORD
    if mechanism.endswith(("2", "R")):
        params = replace(params, auth="bearer", password="", grant="first", access_token=TOKEN)
        secret = TOKEN
    server.extensions = [f"AUTH {mechanism}"]
    if mechanism == "LOGIN":
        server.when("AUTH").says("334 VXNlcm5hbWU6")
        server.when(encoded(b"bob").upper()).says("334 UGFzc3dvcmQ6")
        server.when(encoded(PASSWORD.encode()).upper()).says("235 2.7.0 welcome")

    def parrot(talk):
        said = [line for _, line in server.commands if not line.startswith(("EHLO", "MAIL"))]
        words = [word if padding else word.rstrip("=") for line in said for word in line.split()]
        talk.say(f"550-5.7.1 {secret}\r\n" + "".join(f"550-{word}\r\n" for word in words) + "550 .")

    server.when("MAIL")._does(parrot)
    session = Session.open(params)
    with pytest.raises(smtplib.SMTPSenderRefused) as caught:
        session.try_sender("bob@example.com")
    session.close()
    known = {b"AUTH", mechanism.encode(), b".", b"5.7.1 (hidden)", encoded(b"bob").encode()}
    assert set(caught.value.smtp_error.split(b"\n")) - known == {b"(hidden)"}


def test_a_short_secret_is_not_looked_for(params):
    """It would be found in the middle of words."""
    text = b"5.1.1 abcde is a part of abcdefg"
    assert hiding(replace(params, password="abcde"))(text) == text
    assert hiding(replace(params, password="abcdef"))(text) == b"5.1.1 abcde is a part of (hidden)g"
    assert hiding(replace(params, username="", password=""))(text) == text


# Characters that have no place in a login

ODD = ["bob\r\nMAIL FROM:<>", "bob\0root\0x", "b\nob", "bo\x1bb", "bo\x7fb", "bo\x85b", "bo\ud800b"]
ODD_ONES = [("username", text) for text in ODD]
ODD_ONES += [("password", text) for text in ODD if set(text) & set("\0\r\n\ud800")]

HALF = "Yw90\ud800"


@pytest.mark.parametrize(("name", "text"), [*ODD_ONES, ("local_hostname", ODD[0])])
def test_no_session_is_opened_with_a_login_that_could_be_a_command(params, name, text):
    with pytest.raises(ValueError, match=name.replace("_", " ")) as caught:
        replace(params, **{name: text})
    assert "bo" not in str(caught.value)
    assert caught.value.__context__ is None


def test_nor_with_a_token(params):
    bearer = {"auth": "bearer", "password": "", "grant": "first"}
    with pytest.raises(ValueError, match="access token"):
        replace(params, **bearer, access_token="token\1auth=Bearer other")


@pytest.mark.parametrize("text", ODD[:-1])
def test_a_row_that_has_one_sends_nothing(server, bob, text):
    """Whatever way it came into the database."""
    odd = text.replace("\0", "\1")  # which PostgreSQL does not store
    Credential.objects.filter(pk=bob.pk).update(username=odd)
    mail = message()
    with pytest.raises(ValueError, match="control character"):
        EmailBackend().send_messages([mail])
    assert mail.mailpool_result.status == "failed"
    assert server.connections == 0


@pytest.mark.parametrize(("name", "text"), ODD_ONES)
def test_validation_and_forms_refuse_it(bob, name, text):
    setattr(bob, name, text)
    with pytest.raises(ValidationError, match=f"character.* in the {name}") as caught:
        bob.full_clean()
    assert "bo" not in str(caught.value)
    data = {"username": "mary", "password": "fine", "server": bob.server_id, "priority": 0}
    data |= {"tenant": bob.tenant_id, name: text}
    for form in (
        CredentialForm(data),
        TenantCredentialForm(data, tenant=bob.tenant, require_verification=False),
    ):
        assert form.errors[name], text


@pytest.mark.parametrize("password", ["bell\x07Zx81", "esc\x1bZx81", "\x85 \u202e Zx81"])
def test_a_password_may_have_the_oddest_characters(server, bob, password):
    bob.password = password
    bob.full_clean()
    bob.save()
    EmailBackend().send_messages([message()])
    login = next(line for _, line in server.commands if line.startswith("AUTH"))
    assert base64.b64decode(login.split()[2]).decode() == f"\0bob\0{password}"


def test_half_a_character_is_refused_in_words_that_do_not_hold_the_secret(bob):
    bob.password = HALF
    with pytest.raises(SecretError, match="no Unicode text") as caught:
        bob.save()
    told = everything_about(caught.value)
    assert HALF[:-1] not in told
    assert caught.value.__context__ is None
    with pytest.raises(ValidationError, match="half a character"):
        SecretFormField().clean(HALF)


@pytest.mark.parametrize(
    "url",
    [
        "smtp+tls://bob%0D%0AMAIL:Zx81@smtp.example.com",
        "smtp+tls://bob:Zx81%00@smtp.example.com",
        "smtp+tls://b\udcf6b:Zx81@smtp.example.com",  # what is not UTF-8 in the environment
        "smtp+tls://bob:Zx81\udcf6@smtp.example.com",
    ],
)
def test_import_env_refuses_it(db, monkeypatch, url):
    monkeypatch.setenv("EMAIL_URL", url)
    with pytest.raises(CommandError, match="percent-encoded") as caught:
        call_command("mailpool_import_env")
    assert "Zx81" not in str(caught.value)
    assert not Credential.objects.exists()


def test_import_env_of_a_file_that_is_no_text(db, monkeypatch, tmp_path):
    file = tmp_path / "url"
    file.write_bytes(b"smtp+tls://bob:Zx81\xf6@smtp.example.com")
    monkeypatch.setenv("EMAIL_URL_FILE", str(file))
    with pytest.raises(CommandError, match="is not a URL") as caught:
        call_command("mailpool_import_env")
    assert caught.value.__context__ is None


# What a server says, where people read it

FORGED = (
    "550-5.7.1 no\x1b[2J\x1b]0;title\x07 \u202eevil\u202c \u2066x\u2069 \x9bm \u2028 a\rb \0\r\n"
    "550 WARNING forged"
)
SEEN = (
    "no\ufffd[2J\ufffd]0;title\ufffd \ufffdevil\ufffd \ufffdx\ufffd \ufffdm   a b \ufffd "
    "WARNING forged"
)


def commands(capsys, *names):
    """What commands print, line by line."""
    lines = []
    for name in names:
        with contextlib.suppress(SystemExit):
            call_command(*name)
        printed = capsys.readouterr()
        lines += (printed.out + printed.err).split("\n")
    return lines


SAYS = {
    "greeting": FORGED.replace("550", "554"),
    "EHLO": FORGED,
    "AUTH": FORGED.replace("550", "535"),
    "MAIL": FORGED,
    "RCPT": FORGED,
    "DATA": FORGED,
    "end of data": FORGED,
    "goodbye": FORGED.replace("550", "421"),
    "thanks": FORGED.replace("550", "250"),
    "features": "250-\x1b[2Jx\r\n250-SIZE \x1b[2J\r\n250-AUTH \x1b[2J\r\n250 \u202eEVIL",
    "no SMTP": "what\x1b[2J\u202e?",
    "too many": f"250 2.1.0 ok\r\n{FORGED}",
}


@pytest.mark.parametrize("step", SAYS)
def test_what_a_server_says_is_one_line_and_steers_no_terminal(server, bob, caplog, capsys, step):
    caplog.set_level(logging.DEBUG)
    steps = {"goodbye": "MAIL", "thanks": "end of data", "features": "EHLO"}
    server.when(steps.get(step, "MAIL" if step[:3] in ("no ", "too") else step)).says(SAYS[step])
    mail = message()
    with contextlib.suppress(smtplib.SMTPException):
        EmailBackend().send_messages([mail])
    result = mail.mailpool_result
    delivery.get_pool().close()
    delivery.get_pool().forgive()
    shown = [result.reply, result.queue_id, *(reply for _, reply in result.refused.values())]
    shown += [record.getMessage() for record in caplog.records]
    report = verification.verify_credential(bob)
    shown += [each.detail for each in report.steps]
    if result.error:
        shown += [str(result.error), verification.describe_error(result.error)]
    credential = ["--credential", str(bob.pk)]
    delivery.get_pool().forgive()
    shown += commands(
        capsys,
        ["mailpool_check", *credential],
        ["mailpool_send_test", *credential, "--from", "from@example.com", "--to", "a@example.com"],
        ["mailpool_status"],
        ["mailpool_audit"],
    )
    for text in shown:
        assert text.isprintable(), ascii(text)
    if step not in ("features", "no SMTP", "too many", "EHLO"):
        assert any(SEEN in text for text in shown)
    if isinstance(result.error, smtplib.SMTPResponseException):
        assert b"\x1b[2J" in result.error.smtp_error
        assert b"\n" in result.error.smtp_error


def test_names_of_rows_steer_no_terminal_either(server, bob, capsys):
    """Tenants choose some of them."""
    bob.server.name = "evil\x1b[2J\u202e"
    bob.server.save()
    bob.tenant.slug = "bob\x1b[2J"
    bob.tenant.save()
    Credential.objects.filter(pk=bob.pk).update(username="evil\x1b]0;x\x07\nforged")
    lines = commands(
        capsys,
        ["mailpool_check"],
        [
            "mailpool_send_test",
            "--credential",
            str(bob.pk),
            "--from",
            "from@example.com",
            "--to",
            "a@example.com",
        ],
        ["mailpool_audit"],
    )
    MailServer.objects.update(host="localhost")  # so that the password does not open any more
    unreadable = commands(capsys, ["mailpool_status"], ["mailpool_rotate_keys"])
    assert any("Does not open" in line for line in unreadable)
    lines += unreadable
    assert any("evil\ufffd]0;x\ufffd forged" in line for line in lines)
    for line in lines:
        assert line.isprintable(), ascii(line)


@pytest.mark.parametrize("text", ["plain", "Ä “quoted” 日本", "", "tab\there"])
def test_ordinary_text_is_shown_as_it_is(text):
    assert one_line(text) == one_line(text.encode()) == text.replace("\t", " ")
    assert one_line(b"\xff") == "\ufffd"
