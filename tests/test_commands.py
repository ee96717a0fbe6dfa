"""The commands: what they say, what they change, and how they exit."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError

from mailpool import rotation
from mailpool.management.base import MailpoolCommand
from mailpool.models import Credential, DeliveryRecord, MailServer, Sender
from mailpool.vault import Keyring, generate_key
from mailpool.vault.keyring import parse_key
from tests.factories import CredentialFactory, MailServerFactory, TenantFactory
from tests.smtpd import PASSWORD

NOTHING_ACTIVE = "There is no active credential with an active server and tenant."
OLD, NEW, OTHER = generate_key(), generate_key(), generate_key()
pytestmark = pytest.mark.django_db


def run(name, *args):
    """What the command printed, and its exit status."""
    out = io.StringIO()
    try:
        call_command(f"mailpool_{name}", *map(str, args), stdout=out, stderr=out)
    except SystemExit as end:
        status = end.code
    else:
        status = 0
    text = out.getvalue()
    assert PASSWORD not in text
    return text, status


def use_keys(settings, *keys):
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": list(keys)}


def test_generate_key_prints_a_key_and_nothing_else():
    first, second = run("generate_key")[0].strip(), run("generate_key")[0].strip()
    assert len(parse_key(first)) == 32
    assert first != second


def test_generate_key_works_before_anything_is_configured():
    code = (
        "from django.conf import settings; settings.configure(INSTALLED_APPS=['mailpool', "
        "'django.contrib.contenttypes', 'django.contrib.auth']); import django; django.setup();"
        "from django.core.management import call_command; call_command('mailpool_generate_key')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert len(parse_key(done.stdout.strip())) == 32


# mailpool_check


def test_check_verifies_all_that_are_in_use(mail_host, make_credential):
    make_credential(mail_host, "bob")
    make_credential(mail_host, "off", is_active=False)
    text, status = run("check")
    assert status == 0
    assert "1 checked, 0 failed" in text
    assert mail_host.delivered == []


def test_check_goes_on_after_a_failure_and_exits_with_1(mail_host, make_credential, settings):
    make_credential(mail_host, "bob", password="wrong")
    make_credential(mail_host, "mary")
    text, status = run("check")
    assert status == 1
    assert "failed: Log in (AUTH)" in text
    assert "Check username and password" in text
    assert "2 checked, 1 failed" in text
    report = json.loads(run("check", "--json")[0])
    assert {entry["username"]: entry["ok"] for entry in report} == {"bob": False, "mary": True}
    use_keys(settings, OTHER)
    text, status = run("check", "--tenant", "mary")
    assert (status, "failed: Decrypt the password" in text) == (1, True)


@pytest.mark.parametrize("by", ["tenant", "server", "credential", "tenant key"])
def test_check_chooses(mail_host, make_credential, by):
    bob, other = make_credential(mail_host, "bob"), MailServerFactory(name="other")
    make_credential(mail_host, "mary", server=other)
    choice = {
        "tenant": ("--tenant", "bob"),
        "tenant key": ("--tenant", bob.tenant.pk),
        "server": ("--server", bob.server.name),
        "credential": ("--credential", bob.pk),
    }[by]
    text, status = run("check", *choice)
    assert (status, "1 checked" in text) == (0, True)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["check", "--tenant", "nobody"], "no tenant 'nobody'"),
        (["check", "--server", "nothing"], "no mail server 'nothing': give its name or its key"),
        (["check", "--credential", "x"], "no credential .* mailpool_check --json"),
        (["send_test", "--to", "a@example.com"], "The site itself has no active credential"),
        (["send_test", "--tenant", "empty", "--to", "a@example.com"], "no active credential"),
    ],
)
def test_what_can_not_be_found(args, match):
    TenantFactory(slug="empty")
    with pytest.raises(CommandError, match=match):
        run(*args)


# mailpool_send_test


def test_send_test(mail_host, make_credential):
    make_credential(mail_host, "bob", priority=5, default_from="bob@example.com")
    text, status = run("send_test", "--tenant", "bob", "--to", "you@example.com")
    assert (status, mail_host.delivered[0].login) == (0, "bob")
    assert "250 2.0.0 queued" in text
    text, status = run("send_test", "--tenant", "bob", "--to", "refused@example.com", "--json")
    assert (status, json.loads(text)["status"]) == (1, "refused")
    make_credential(mail_host, username="site")
    assert run("send_test", "--to", "you@example.com", "--from", "s@example.com")[1] == 0
    assert mail_host.delivered[1].sender == "s@example.com"
    assert mail_host.delivered[1].login == "site"
    with pytest.raises(CommandError, match="not a mail address"):
        run("send_test", "--to", "nonsense", "--from", "s@example.com")


@pytest.mark.parametrize(
    ("values", "senders", "sender"),
    [
        ({"username": "bob"}, [], None),
        ({"username": "bob@example.com"}, [], "bob@example.com"),
        ({"username": "bob@example.com", "default_from": "B <b@x.example>"}, [], "b@x.example"),
        ({"username": "bob@example.com"}, ["shop@x.example", "@a.example"], "shop@x.example"),
        ({"username": "bob@a.example"}, ["@a.example"], "bob@a.example"),
        ({"username": "bob@example.com"}, ["@a.example"], "postmaster@a.example"),
    ],
)
def test_send_test_is_from_an_address_of_the_account(
    mail_host, make_credential, values, senders, sender
):
    bob = make_credential(mail_host, "bob", **values)
    for address in senders:
        Sender.objects.create(credential=bob, address=address)
    to = ("send_test", "--tenant", "bob", "--to", "you@example.com")
    if sender is None:
        with pytest.raises(CommandError, match=r"no mail address\. .*Or add --from ADDRESS\.$"):
            run(*to)
        assert mail_host.connections == 0
        sender = "other@example.com"
        assert run(*to, "--from", sender)[1] == 0
    else:
        assert run(*to)[1] == 0
    assert mail_host.delivered[0].sender == sender
    if senders:
        text, status = run(*to, "--from", "eve@bank.example")
        assert (status, "eve@bank.example is not among the senders" in text) == (1, True)
        assert len(mail_host.delivered) == 1


def test_a_test_message_needs_a_recipient(mail_host, make_credential):
    make_credential(mail_host, username="site", default_from="site@example.com")
    with pytest.raises(CommandError, match="'' is not a single mail address"):
        run("send_test", "--to", "")
    assert not DeliveryRecord.objects.exists()


def test_a_test_message_that_is_refused_is_among_its_tenants_records(mail_host, make_credential):
    bob = make_credential(mail_host, "bob")
    Sender.objects.create(credential=bob, address="bob@example.com")
    args = ("--tenant", "bob", "--to", "a@example.com", "--from", "mary@example.com")
    assert run("send_test", *args)[1] == 1
    record = DeliveryRecord.objects.get()
    assert (record.tenant_name, record.tenant_id, record.outcome) == (
        "bob",
        bob.tenant_id,
        "failed",
    )


def test_send_test_for_the_site_says_which_tenants_there_are():
    with pytest.raises(CommandError, match="No tenant has one, either"):
        run("send_test", "--to", "a@example.com")
    CredentialFactory(tenant__slug="t0")
    with pytest.raises(
        CommandError, match=r"1 tenant has credentials; name one with --tenant: t0$"
    ):
        run("send_test", "--to", "a@example.com")
    for number in range(1, 7):
        CredentialFactory(tenant__slug=f"t{number}")
    CredentialFactory(tenant=Credential.objects.first().tenant)
    with pytest.raises(CommandError, match=r"7 tenants have .* t0, t1, t2, t3, t4 …"):
        run("send_test", "--to", "a@example.com")


def test_send_test_tells_of_a_failure_once(mail_host, make_credential, capfd, monkeypatch):
    make_credential(mail_host, "bob", password="wrong", default_from="bob@example.com")
    # As in a project that has no handler: pytest has put some there.
    monkeypatch.setattr(logging.getLogger("mailpool"), "propagate", False)
    text, status = run("send_test", "--tenant", "bob", "--to", "you@example.com")
    assert (status, text.count("535")) == (1, 1)
    assert capfd.readouterr().err == ""


# mailpool_rotate_keys


@pytest.fixture
def old_secrets(settings):
    use_keys(settings, OLD)
    credentials = [CredentialFactory(password=f"secret {number}") for number in range(5)]
    use_keys(settings, NEW, OLD)
    return credentials


def under(key):
    return rotation.key_usage()[Keyring([key]).newest]


def test_rotation_rewrites_all_and_can_be_run_again(old_secrets, monkeypatch):
    monkeypatch.setattr(rotation, "BATCH", 2)
    before = Credential.objects.first().password_set_at
    assert "5 would be rewritten" in run("rotate_keys", "--dry-run")[0]
    assert under(OLD) == 5
    assert "5 rewritten" in run("rotate_keys")[0]
    assert (under(OLD), under(NEW)) == (0, 5)
    assert "0 rewritten, 5 were under it already" in run("rotate_keys")[0]
    assert {c.password for c in Credential.objects.all()} == {
        f"secret {number}" for number in range(5)
    }
    assert Credential.objects.first().password_set_at == before


def test_rotation_goes_on_where_it_was_interrupted(old_secrets, monkeypatch):
    monkeypatch.setattr(rotation, "BATCH", 2)
    original, calls = Keyring.seal, []

    def seal(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Keyring, "seal", seal)
        with pytest.raises(KeyboardInterrupt):
            run("rotate_keys")
    assert under(NEW) == 2
    assert "3 rewritten, 2 were" in run("rotate_keys")[0]


def test_password_that_is_changed_in_the_same_moment_is_not_lost(old_secrets, monkeypatch):
    """Between the rotation's reading and writing of a row, somebody sets its password."""
    original, changed = Keyring.open, []

    def open_and_change(self, sealed, place, *args, **kwargs):
        plain = original(self, sealed, place, *args, **kwargs)
        if not changed:
            changed.append(place)
            row = Credential.objects.get(pk=place.split(":")[1])
            row.password = "set meanwhile"
            row.save()
        return plain

    monkeypatch.setattr(Keyring, "open", open_and_change)
    text, status = run("rotate_keys")
    assert status == 0
    assert "1 were set by somebody else" in text
    assert Credential.objects.get(pk=changed[0].split(":")[1]).password == "set meanwhile"
    assert under(NEW) == 5


def test_what_no_key_opens_is_reported_and_left(old_secrets, settings):
    use_keys(settings, OTHER)
    CredentialFactory(password="lost")
    use_keys(settings, NEW, OLD)
    text, status = run("rotate_keys")
    assert (status, "Does not open with any key" in text) == (1, True)
    assert under(OTHER) == 1
    result = json.loads(run("rotate_keys", "--json")[0])
    assert len(result["unreadable"]) == 1


def test_rotation_without_a_key(settings):
    use_keys(settings)
    with pytest.raises(CommandError, match="mailpool_generate_key"):
        run("rotate_keys")


# mailpool_status


def test_status_says_when_a_key_may_go(old_secrets, settings):
    text, status = run("status")
    assert (status, "run mailpool_rotate_keys" in text) == (0, True)
    run("rotate_keys")
    assert "may be removed" in run("status")[0]
    use_keys(settings, OLD)
    text, status = run("status")
    assert (status, "put it back" in text) == (1, True)
    report = json.loads(run("status", "--json")[0])
    assert report["rows"]["credentials"] == {"active": 5, "all": 5}
    assert len(report["unreadable"]) == 5


# mailpool_import_env


def import_env(monkeypatch, url, *args):
    monkeypatch.setenv("EMAIL_URL", url)
    return run("import_env", *args)


@pytest.mark.parametrize(
    ("url", "security", "port"),
    [
        ("smtp+tls://bob:p%40ss%2Fword@smtp.example.com:587", "starttls", 587),
        ("smtp+tls://bob:p%40ss%2Fword@smtp.example.com", "starttls", 587),
        ("smtp+ssl://bob:p%40ss%2Fword@smtp.example.com:465", "tls", 465),
        ("smtp://bob:p%40ss%2Fword@localhost:2525", "plain", 2525),
    ],
)
def test_import_env(monkeypatch, url, security, port):
    TenantFactory(slug="bob")
    args = ("--tenant", "bob", "--from", "bob@example.com", "--sender", "@example.com")
    text, _ = import_env(monkeypatch, url, *args, "--dry-run")
    assert "Would create mail server" in text
    assert not MailServer.objects.exists()
    for _ in range(2):  # the second time finds what the first one made
        text, _ = import_env(monkeypatch, url, *args)
        assert "p@ss/word" not in text
    assert "Updated credential" in text
    credential = Credential.objects.get()
    assert (credential.username, credential.password) == ("bob", "p@ss/word")
    assert (credential.server.security, credential.server.port) == (security, port)
    assert credential.tenant.slug == "bob"
    assert Sender.objects.get().address == "@example.com"


def test_import_env_from_a_file(monkeypatch, tmp_path):
    file = tmp_path / "url"
    file.write_text("smtp+tls://bob:secret@smtp.example.com:587")
    monkeypatch.setenv("ACCOUNT_FILE", str(file))
    result = json.loads(run("import_env", "--variable", "ACCOUNT", "--json")[0])
    assert result["credential_created"]
    assert Credential.objects.get().password == "secret"
    monkeypatch.setenv("MISSING_FILE", str(tmp_path / "missing"))
    with pytest.raises(CommandError, match="can't be read"):
        run("import_env", "--variable", "MISSING")


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("", "is not set"),
        ("nonsense", "not a URL of an SMTP account"),
        ("consolemail://", "not a URL of an SMTP account"),
        ("smtp+tls://bob:secret@smtp.example.com:99999", "not a URL|65535"),
        ("ftp://bob:secret@smtp.example.com", "not a URL of an SMTP account"),
        ("smtp://bob:secret@smtp.example.com:25", "clear text"),
    ],
)
def test_import_env_refuses_what_it_can_not_use(monkeypatch, url, match):
    with pytest.raises(CommandError, match=match) as caught:
        import_env(monkeypatch, url)
    assert "secret" not in str(caught.value)
    assert not MailServer.objects.exists()


# As a monitor sees it


@pytest.mark.parametrize("command", ["mailpool_check", "mailpool_status"])
def test_exit_status_of_a_real_process(command, tmp_path):
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DATABASE_URL": f"sqlite:///{tmp_path / 'empty.sqlite3'}",
    }

    def manage(*args):
        return subprocess.run(
            [sys.executable, "-m", "django", *args],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    unmigrated = manage(command)
    assert unmigrated.returncode == 1
    assert "Has 'migrate' been run?" in unmigrated.stderr
    assert "Traceback" not in unmigrated.stderr
    assert manage("migrate", "-v", "0").returncode == 0
    assert manage(command).returncode == 0


@pytest.mark.parametrize("command", ["check", "send_test", "import_env"])
def test_an_empty_tenant_is_neither_the_site_nor_everybody(monkeypatch, command):
    """Such as comes from a shell variable that is not set."""
    monkeypatch.setenv("EMAIL_URL", f"smtp+tls://u:{PASSWORD}@smtp.example.com:587")
    CredentialFactory(tenant=None)
    to = ["--to", "a@example.com"] if command == "send_test" else []
    with pytest.raises(CommandError, match="--tenant is empty"):
        run(command, "--tenant", "", *to)
    assert Credential.objects.count() == 1


def test_check_says_why_there_is_nothing_to_check():
    assert run("check") == ("\n0 checked, 0 failed.\n" + NOTHING_ACTIVE + "\n", 0)
    CredentialFactory(is_active=False)
    text, status = run("check")
    assert (NOTHING_ACTIVE in text, status) == (True, 0)


def test_a_database_that_does_not_answer_is_told_in_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise OperationalError("connection refused\n\tIs the server running on that host?\n")

    monkeypatch.setattr(MailpoolCommand, "print_json", fail)
    with pytest.raises(CommandError) as raised:
        run("check", "--json")
    text = str(raised.value)
    assert "Does its server run, and is DATABASES right?" in text
    assert text.endswith("It said: connection refused  Is the server running on that host?")


def test_check_of_chosen_accounts_of_which_none_is_active():
    credential = CredentialFactory(is_active=False)
    text, status = run("check", "--tenant", credential.tenant.slug)
    assert "None of those is active" in text
    assert status == 1


def test_nothing_is_sent_with_what_is_switched_off(mail_host, make_credential):
    credential = make_credential(mail_host, "bob", is_active=False)
    text, status = run("send_test", "--credential", credential.pk, "--to", "a@example.com")
    assert "This credential is inactive" in text
    assert status == 1
    assert mail_host.delivered == []


def test_import_env_of_the_same_host_with_another_port(monkeypatch):
    import_env(monkeypatch, f"smtp+tls://u:{PASSWORD}@smtp.example.com:587")
    import_env(monkeypatch, f"smtp+ssl://u:{PASSWORD}@smtp.example.com:465")
    names = set(MailServer.objects.values_list("name", flat=True))
    assert names == {"smtp.example.com", "smtp.example.com:465"}


def test_import_env_of_a_password_that_is_not_encoded(monkeypatch):
    with pytest.raises(CommandError, match="percent-encoded"):
        import_env(monkeypatch, "smtp+tls://u:587#secret@smtp.example.com")
    assert not MailServer.objects.exists()


def test_import_env_of_senders_that_do_not_fit(monkeypatch):
    url = "smtp+tls://bob:secret@smtp.example.com:587"
    with pytest.raises(CommandError, match=r"^--sender nonsense: Enter a full address[^.]*example"):
        import_env(monkeypatch, url, "--sender", "nonsense")
    with pytest.raises(CommandError, match="is not among the senders"):
        import_env(monkeypatch, url, "--sender", "@a.example", "--from", "x@b.example")
    assert not Credential.objects.exists()


def test_a_choice_that_contradicts_itself():
    bob, mary = CredentialFactory(tenant__slug="bob"), CredentialFactory(tenant__slug="mary")
    with pytest.raises(CommandError, match="not among those that --tenant and --server choose"):
        run("check", "--tenant", "mary", "--credential", str(bob.pk))
    with pytest.raises(CommandError, match="--server is empty"):
        run("check", "--server", "")
    assert mary.tenant.slug == "mary"


@pytest.mark.parametrize(
    ("url", "args", "told"),
    [
        ("smtp+tls://bob@smtp.example.com", (), "EMAIL_URL: Enter the password of this account."),
        ("smtp://bob:x@smtp.example.com", (), "EMAIL_URL: The password would travel to"),
        ("smtp+tls://bob:x@smtp.example.com", ("--from", "bob"), "--from: Enter a full address"),
        ("smtp+tls://bob:x@smtp.example.com", ("--sender", "b b"), "--sender b b: Enter a full"),
        ("smtp+tls://bob:x@smtp.example.com", ("--name", "n" * 101), "--name: Ensure this value"),
    ],
)
def test_import_env_says_where_it_is_wrong(monkeypatch, url, args, told):
    with pytest.raises(CommandError) as caught:
        import_env(monkeypatch, url, *args)
    assert str(caught.value).startswith(told)
    assert not MailServer.objects.exists()


@pytest.mark.parametrize("option", ["--dry-run", "--older-than=3"])
def test_what_does_not_go_with_sum_up_only_is_not_passed_over(option):
    with pytest.raises(CommandError, match="--sum-up-only removes nothing: leave out"):
        run("prune", "--sum-up-only", option)


@pytest.mark.parametrize("days", [0, 36501])
def test_how_many_days_records_may_be_kept(days):
    with pytest.raises(CommandError, match=f"{days} is no number of days from 1 to 36500"):
        run("prune", f"--older-than={days}")


@pytest.mark.parametrize("seconds", ["x", "0", "nan"])
def test_seconds_that_are_none(seconds):
    with pytest.raises(CommandError, match="give a number of seconds from"):
        run("status", f"--watch={seconds}")
