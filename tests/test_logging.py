"""Log records have stable names and fields, no secret, and addresses only where asked for."""

from __future__ import annotations

import ast
import json
import logging
import re
from pathlib import Path

import django
import pytest
from django.core.mail import EmailMessage, mail_admins
from django.utils.log import AdminEmailHandler

import mailpool
from mailpool import delivery, ownership, recording, signals
from mailpool.backends import EmailBackend
from mailpool.events import event
from mailpool.exceptions import OwnershipError
from mailpool.models import AuditEntry
from mailpool.routing import Router
from tests.factories import MailServerFactory, SenderFactory
from tests.smtpd import PASSWORD

SOURCE = Path(mailpool.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "logging.md"
LEVELS = {"debug", "info", "warning", "error", "critical", "exception", "log"}


def log_calls():
    """Every call of a logger in mailpool: where it is, and the names of its events."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            function = getattr(node, "func", None)
            if not isinstance(function, ast.Attribute) or function.attr not in LEVELS:
                continue
            if "log" not in ast.unparse(function.value).lower():
                continue
            extra = [each.value for each in node.keywords if each.arg == "extra"]
            names = [
                name_of(call.args[0]) for each in extra for call in ast.walk(each) if is_event(call)
            ]
            yield f"{path.relative_to(SOURCE)}:{node.lineno}", names


def is_event(node):
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "event"


def name_of(node):
    """The name as the documentation has it: ``*`` stands for what is put in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "*" for part in node.values
        )
    return node.value


CALLS = dict(log_calls())
DOCUMENTED = re.findall(
    r"^\| `(mailpool\.[\w.*]+)` \| `(\w+)` \| `([\w.]+)` \| (.*?) \|", PAGE.read_text(), re.M
)


def test_there_are_log_calls():
    assert len(CALLS) >= 10


@pytest.mark.parametrize("place", CALLS)
def test_every_log_call_has_one_event_that_is_documented(place):
    assert len(CALLS[place]) == 1, f"{place}: write extra=event('mailpool.…')"
    assert CALLS[place][0] in [name for name, *_ in DOCUMENTED]


def test_no_event_is_documented_that_there_is_not():
    names = [name for name, *_ in DOCUMENTED]
    assert sorted(names) == sorted({name for names in CALLS.values() for name in names})


def check(record):
    """*record* is as documented: level, logger, and fields that are plain values."""
    fields = {name: value for name, value in vars(record).items() if name.startswith("mailpool_")}
    rows = {name: (level, logger, text) for name, level, logger, text in DOCUMENTED}
    level, logger, text = rows[record.event]
    assert (record.levelname, record.name) == (level, logger)
    allowed = set(re.findall(r"`(mailpool_\w+)`", text))
    assert allowed == fields.keys() - {"mailpool_from", "mailpool_recipients"}
    assert PASSWORD not in json.dumps(fields)
    return {name.removeprefix("mailpool_"): value for name, value in fields.items()}


def of(caplog, name):
    return [check(record) for record in caplog.records if getattr(record, "event", "") == name]


@pytest.fixture(autouse=True)
def _all_levels(caplog):
    caplog.set_level(logging.DEBUG, "mailpool")


def send(tenant, to="a@example.com"):
    message = EmailMessage("Hello", "text", f"{tenant}@example.com", [to])
    message.tenant = tenant
    return delivery.deliver([message], Router().resolve)[0]


@pytest.mark.django_db(transaction=True)
def test_sent_and_not_sent(mail_host, make_credential, caplog):
    make_credential(mail_host, "bob")
    first, second = send("bob"), send("bob")
    refused = send("bob", "refused@example.com")
    nowhere = send("nobody")
    [opened] = of(caplog, "mailpool.session_opened")
    assert (opened["session"], opened["reason"]) == (first.session_id, "new")
    server = MailServerFactory._meta.model.objects.get()
    assert opened["server"] == server.name
    sent = of(caplog, "mailpool.sent")
    assert [each["reused"] for each in sent] == [False, True]
    assert {each["session"] for each in sent} == {first.session_id} == {second.session_id}
    assert (sent[0]["status"], sent[0]["tenant"], sent[0]["server"]) == ("sent", "bob", server.name)
    assert (sent[0]["code"], sent[0]["seconds"]) == (250, first.seconds)
    assert 0 < first.seconds < 30
    bad = of(caplog, "mailpool.not_sent")
    assert [(each["status"], each["error"], each["refused"]) for each in bad] == [
        ("refused", "SMTPRecipientsRefused", 1),
        ("failed", "NoRoute", 0),
    ]
    assert (bad[1]["server"], bad[1]["tenant"], bad[1]["credential"]) == ("", "", None)
    assert refused.seconds is None is nowhere.seconds


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("asked", [False, True])
def test_addresses_only_where_asked_for(mail_host, make_credential, caplog, settings, asked):
    settings.MAILPOOL = {**settings.MAILPOOL, "LOG_ADDRESSES": asked}
    make_credential(mail_host, "bob")
    for to in ("you@example.com", "refused@example.com"):
        send("bob", to)
    records = [each for each in caplog.records if getattr(each, "event", "").endswith("sent")]
    assert len(records) == 2
    for record in records:
        fields = check(record)
        assert ("example.com" in json.dumps(fields)) is asked
    if asked:
        assert fields["recipients"] == ["refused@example.com"]
        assert fields["from"] == "bob@example.com"


@pytest.mark.django_db(transaction=True)
def test_a_tenants_own_server_is_called_like_all_of_them(
    mail_host, make_credential, caplog, settings
):
    settings.MAILPOOL = {
        **settings.MAILPOOL,
        "TENANT_SERVER_NETWORKS": ["127.0.0.0/8", "::1/128"],
        "TENANT_SERVER_PORTS": [mail_host.port],
    }
    credential = make_credential(mail_host, "bob")
    credential.server.tenant = credential.tenant
    credential.server.save()
    assert send("bob").server == "(tenants)"
    assert of(caplog, "mailpool.session_opened")[0]["server"] == "(tenants)"


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_was_found_dead(mail_host, make_credential, caplog):
    make_credential(mail_host, "bob")
    send("bob")
    mail_host.drop_connections()
    send("bob")
    [ended] = of(caplog, "mailpool.session_ended")
    first, second = of(caplog, "mailpool.session_opened")
    assert [each["reason"] for each in (first, second)] == ["new", "dead"]
    assert ended["session"] == first["session"]
    assert ended["messages"] == 1


@pytest.mark.django_db
def test_what_is_about_tenants(mail_host, make_credential, caplog):
    credential = make_credential(mail_host, "bob")
    with pytest.raises(OwnershipError):
        ownership.send_code(SenderFactory(credential=credential, address="shop@shop.example"))
    [fields] = of(caplog, "mailpool.code_not_sent")
    assert fields["credential"] == str(credential.pk)
    assert fields["error"] == "NoRoute"
    assert "shop.example" not in json.dumps(fields)


@pytest.mark.django_db(transaction=True)
def test_the_audits(make_credential, mail_host, caplog):
    make_credential(mail_host, "bob")
    entry = AuditEntry.objects.latest("pk")
    record = [each for each in caplog.records if each.name == "mailpool.audit"][-1]
    assert record.event == f"mailpool.audit.{entry.action}"
    assert record.audit_tenant == "bob"


@pytest.fixture
def mailed_logs(real_mail):
    """What mailpool logs goes to the admins by mail, as people have it for errors of all kinds."""
    real_mail.ADMINS = (
        ["admin@example.com"] if django.VERSION >= (6, 0) else [("", "a@example.com")]
    )
    handler, logger = AdminEmailHandler(), logging.getLogger("mailpool")
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.mark.django_db(transaction=True)
def test_nobody_is_mailed_of_the_mail_that_tells_of_records(
    mail_host, make_credential, mailed_logs, monkeypatch
):
    def broken(*args):
        raise OSError("no space left")

    def tell(count, **kwargs):
        mail_admins("lost", f"{count} records")

    make_credential(mail_host)
    monkeypatch.setattr(recording, "_insert", broken)
    signals.records_failed.connect(tell)
    try:
        assert message().send() == 1
    finally:
        signals.records_failed.disconnect(tell)
    subjects = [each.message["Subject"] for each in mail_host.delivered]
    assert len(subjects) == 3, subjects
    assert "1 delivery records could not be written" in subjects[1]
    assert "lost" in subjects[2]


@pytest.mark.django_db(transaction=True)
def test_that_the_admins_cannot_be_mailed_is_no_failure_of_a_message(
    mail_host, make_credential, mailed_logs, monkeypatch
):
    credential, tried = make_credential(mail_host, "bob"), []
    monkeypatch.setattr(delivery, "make_result", noting(tried, delivery.make_result))
    bad, good = message(), message()
    bad.tenant, good.tenant = "nobody", credential.tenant
    backend = EmailBackend(fail_silently=True)
    assert backend.send_messages([bad, good]) == 1
    assert bad.mailpool_result.status == "failed"
    assert len(tried) == 3  # these, and the mail to the admins: there is no account for it


@pytest.mark.parametrize("error", [BrokenPipeError("nobody reads"), ValueError("closed")])
@pytest.mark.django_db(transaction=True)
def test_a_handler_that_fails_where_stderr_does_as_well(monkeypatch, error):
    class Broken:
        def write(self, text):
            raise error

    class Failing(logging.Handler):
        def emit(self, record):
            raise RuntimeError("no room")

    failed: list[object] = []
    handler, logger = Failing(), logging.getLogger("mailpool")
    logger.addHandler(handler)
    monkeypatch.setattr("sys.stderr", Broken())

    def note(**kwargs):
        failed.append(kwargs["message"])

    signals.message_failed.connect(note)
    messages = [message(), message()]  # nobody's
    try:
        assert EmailBackend(fail_silently=True).send_messages(messages) == 0
        assert failed == messages
    finally:
        signals.message_failed.disconnect(note)
        logger.removeHandler(handler)


def noting(calls, function):
    def noted(*args):
        calls.append(args)
        return function(*args)

    return noted


def message():
    return EmailMessage("hello", "text", "bob@example.com", ["a@example.com"])


def test_fields_are_plain_values():
    fields = event("mailpool.x", error=ValueError("a secret"), key=SOURCE, number=1.5, none=None)
    assert fields == {
        "event": "mailpool.x",
        "mailpool_error": "ValueError",
        "mailpool_key": str(SOURCE),
        "mailpool_number": 1.5,
        "mailpool_none": None,
    }
    record = logging.makeLogRecord({})
    assert not fields.keys() & vars(record).keys()
