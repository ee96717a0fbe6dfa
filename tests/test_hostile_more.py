"""More of those who have a permission or a say somewhere, and want a secret by it."""

from __future__ import annotations

import base64
import contextlib
import json
import smtplib
from dataclasses import replace

import pytest
from django.contrib.auth.models import Permission
from django.core.mail import EmailMessage

from mailpool import verification
from mailpool.backends import EmailBackend
from mailpool.models import Credential
from mailpool.smtp import Envelope, Session, SessionParams
from mailpool.smtp.auth import hiding
from mailpool.smtp.envelope import Said
from mailpool.transfer import UnusableFile, files, read
from mailpool.transfer.columns import columns
from tests.factories import CredentialFactory, MailServerFactory
from tests.scripted import ScriptedServer
from tests.test_hostile_oauth import evil, log_in, staff  # noqa: F401
from tests.test_oauth import client, connect, host, provider  # noqa: F401
from tests.test_service_accounts import BOSS, client_of, delegate, key, pem  # noqa: F401
from tests.test_transfer import table
from tests.test_transfer_admin import IMPORT, upload

pytestmark = pytest.mark.django_db

PASSWORD = "Zx81-very.secret"


@pytest.fixture
def importer(staff):  # noqa: F811
    """Staff who may import, change OAuth clients, and not where passwords go."""
    staff.user.user_permissions.add(*Permission.objects.filter(codename__in=IMPORT))
    return staff


@pytest.mark.parametrize("kind", ["client_credentials", "service_account"])
def test_no_import_takes_the_tokens_of_an_application_elsewhere(
    importer,
    log_in,  # noqa: F811
    provider,  # noqa: F811
    evil,  # noqa: F811
    kind,
):
    credential = log_in(kind)
    head = "tenant,server,host,port,security,username,kind,oauth_client"

    def file(server, address="", port="", security=""):
        row = (server, address, port, security, BOSS, kind, credential.oauth_client.name)
        return table((credential.tenant.slug, *row), head=head)

    # A server of theirs that is there, and one that comes with the file;
    for text in (file(evil.name), file("Evil", "127.0.0.1", "2525", "starttls")):
        response = upload(importer, text)
        assert "addresses of mail servers" in response.content.decode()
        upload(importer, text, response.context["token"])
        assert not Credential.objects.filter(username=BOSS).exists()
    assert provider.requests == []
    # where the application's tokens go already, another mailbox needs no more.
    text = file(credential.server.name)
    assert upload(importer, text, upload(importer, text).context["token"]).status_code == 302
    assert Credential.objects.get(username=BOSS).is_permitted


def test_no_report_on_an_import_tells_whether_a_guess_is_right(importer):
    bob = CredentialFactory(password=PASSWORD)
    row = (bob.tenant.slug, bob.server.name, bob.username)
    shown = []
    for guess in (PASSWORD, "no idea"):
        text = table((*row, guess), head="tenant,server,username,password")
        items = upload(importer, text).context["plan"].items
        shown.append([str(each) for item in items for each in item.differences])
    assert shown == [["password: replaced"]] * 2


def test_a_file_without_a_head_is_not_repeated_for_one():
    text = f"bob,Main,smtp.example.com,bob,{PASSWORD},active\n"
    with pytest.raises(UnusableFile, match="has to name the columns") as caught:
        read(text.encode(), "csv")
    assert "zx81" not in str(caught.value).lower()
    assert len(caught.value.problems) == 1


FLOODS = {
    "columns": (b"a," * 1_000_000, "csv"),
    "good columns": (b"tenant," * 1_000_000, "csv"),
    "rows": (b"tenant,server\n" + b"a\n" * 100_000, "csv"),
    "elements": (b"[" + b"1," * 100_000 + b"1]", "json"),
    "names": (b'[{"tenant": 1' + b"".join(b',"%d":1' % n for n in range(100_000)) + b"}]", "json"),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_what_is_wrong_is_reported_so_often_and_no_more(flood):
    """Without a limit these take minutes, and gigabytes."""
    problems = []
    try:
        _, problems = read(*FLOODS[flood])
    except UnusableFile as error:
        problems = error.problems
    assert 1 <= len(problems) <= files.MAX_PROBLEMS + 1


def test_quotes_without_an_end_are_looked_for_once():
    with pytest.raises(ValueError, match="addresses"):
        columns()["senders"].parse('"' + '\\"' * 60_000)


FILES = {
    "csv": table(("bob", "Main", "smtp.example.com", "bob", PASSWORD, "")),
    "json": json.dumps(
        [{"tenant": "b", "server": "M", "host": "h.test", "username": "b", "password": PASSWORD}]
    ),
}
MOMENTS = {
    "reading": "mailpool.transfer.files._row",
    "comparing": "mailpool.transfer.accounts._validate",
    "writing": "mailpool.transfer.writing._store",
    "the database": "django.db.models.query.QuerySet._batched_insert",
}


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("moment", MOMENTS)
def test_debug_page_of_an_import_that_breaks_off(importer, settings, monkeypatch, format, moment):
    settings.DEBUG = True
    importer.raise_request_exception = False
    token = upload(importer, FILES[format], name=f"f.{format}").context["token"]

    def fail(*args, **kwargs):
        raise RuntimeError("something went wrong")

    monkeypatch.setattr(MOMENTS[moment], fail)
    response = upload(importer, FILES[format], token, name=f"f.{format}")
    page = response.content.decode()
    assert response.status_code == 500
    assert "something went wrong" in page
    assert PASSWORD not in page


# What is hidden of a server's words tells nobody whether they guessed


@pytest.fixture
def echoing():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def robert(echoing):
    return CredentialFactory(
        tenant__slug="robert",
        username="robert@example.com",
        password=PASSWORD,
        server=MailServerFactory(host="127.0.0.1", port=echoing.port, security="plain", timeout=5),
    )


@pytest.fixture
def params(echoing):
    return SessionParams(
        credential_id="robert",
        host="127.0.0.1",
        port=echoing.port,
        security="plain",
        username="robert@example.com",
        password=PASSWORD,
        timeout=5,
    )


RIGHT = {
    "all of it": PASSWORD,
    "the next character": base64.b64encode(b"\0robert@example.com\0Zx81").decode(),
    "in another case": base64.b64encode(PASSWORD.encode()).decode(),
}


@pytest.mark.parametrize("guess", RIGHT)
@pytest.mark.parametrize(
    "where", ["recipient", "sender", "content", "verification", "attachment", "subject", "encoded"]
)
def test_nobody_finds_out_a_password_by_having_guesses_repeated(echoing, robert, where, guess):
    right = RIGHT[guess]
    chosen = right.swapcase() if guess == "in another case" else right
    address = f"{chosen}@example.org"
    step = {"recipient": "RCPT", "verification": "RCPT", "sender": "MAIL"}.get(where, "end of data")
    echoing.when(step).says(f"550-5.1.1 nobody\r\n550 5.1.1 knows <{right}@example.org> here")
    if where == "verification":
        told = verification.verify_credential(robert, recipient=address).failure.detail
    else:
        mail = EmailMessage("hello", "text", "robert@example.com", ["a@example.com"])
        mail.tenant = "robert"
        if where == "recipient":
            mail.to = [address]
        elif where == "sender":
            mail.from_email = address
        elif where == "attachment":
            mail.attach("a.bin", f"https://{chosen}@example.org".encode(), "application/x-guess")
        elif where == "subject":
            mail.subject = f"höre {chosen}"
        elif where == "encoded":
            # So long a line is encoded, and the guess would be cut in two.
            mail.body = "ö" * 500 + "x" * 1000 + f"\n{'x' * 60} {chosen}"
        else:
            mail.body = f"https://{chosen}@example.org"
        with contextlib.suppress(smtplib.SMTPException):
            EmailBackend().send_messages([mail])
        told = mail.mailpool_result.reply or str(mail.mailpool_result.error)
    assert f"knows <{right}@example.org> here" in told


# A username with a word in it that is a part of what it is sent in, if the password begins so.
PART = base64.b64encode(b"ample.test\0Zx81").decode()
USERNAMES = [f"{PASSWORD}@example.org", base64.b64encode(PASSWORD.encode()).decode()]


@pytest.mark.parametrize("username", [*USERNAMES, f"{PART}@example.test"])
def test_nor_by_having_a_username_repeated(echoing, robert, username):
    robert.username = username
    robert.save()
    sent = base64.b64encode(f"\0{username}\0{PASSWORD}".encode()).decode()
    assert PART in sent or username in USERNAMES
    echoing.when("AUTH").says(f"535-5.7.8 there is no\r\n535 5.7.8 {username} here, nor {sent}")
    told = verification.verify_credential(robert).failure.detail
    assert f"{username} here, nor (hidden)" in told


def test_a_password_that_is_a_part_of_the_username_is_not_shown_by_its_absence(params):
    hide = hiding(replace(params, password="example.com"))
    assert hide(b"535 no Robert@Example.com") == b"535 no Robert@Example.com"
    assert hide(b"535 no robert@example.com") == b"535 no robert@example.com"


ENCODED = {
    "base64": base64.encodebytes(b"x" * 100 + PASSWORD.encode() + b"y" * 100),
    "base64, cut off": base64.b64encode(PASSWORD.encode() + b"yy")[:-1],
    "quoted-printable": b"Zx81-ve=\n=72y.secre=74",
    "a header in base64": b"Subject: =?utf-8?b?%b?=" % base64.b64encode(PASSWORD.encode()),
}


@pytest.mark.parametrize("encoded", ENCODED.values(), ids=ENCODED)
def test_what_was_sent_in_an_encoding_is_known_without_it(encoded):
    said = Said(Envelope("a@b.test", ("c@d.test",), b"Subject: hello\n\n" + encoded + b"\n\n."))
    assert PASSWORD.encode() in said
    assert b"another-very.secret" not in said


@pytest.mark.parametrize("length", range(8, 20))
def test_whatever_looks_encoded_is_looked_through(length):
    said = Said(Envelope("a@b.test", ("c@d.test",), b"=" + b"A" * length + b"=\r\nBBBB=4"))
    assert PASSWORD.encode() not in said


def test_what_was_sent_is_hidden_again_when_the_next_one_is_answered(echoing, params):
    echoing.when("MAIL", occurrence=2).says(f"550 5.7.1 you logged in with {PASSWORD}")
    echoing.when("NOOP").says(f"421 4.4.2 bye, {PASSWORD}").then.closes()
    session = Session.open(params)
    content = f"Subject: hello\r\n\r\nhttps://{PASSWORD}.org".encode()
    session.send(Envelope("robert@example.com", ("a@example.com",), content))
    with pytest.raises(smtplib.SMTPSenderRefused, match=r"with .hidden."):
        session.send(Envelope("robert@example.com", ("a@example.com",), b"Subject: hello"))
    session.opened.write(b"NOOP\r\n")
    echoing.catch_up(0)
    assert not session.is_alive()
    assert session.closed_because.endswith("bye, (hidden)'")


def test_nor_is_it_kept_after_the_last_one(echoing, params):
    echoing.when("NOOP").says(f"421 4.4.2 bye, {PASSWORD}").then.closes()
    session = Session.open(params)
    session.send(Envelope("robert@example.com", ("a@example.com",), PASSWORD.encode()))
    session.opened.write(b"NOOP\r\n")
    echoing.catch_up(0)
    assert not session.is_alive()
    assert session.closed_because.endswith("bye, (hidden)'")
