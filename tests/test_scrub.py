"""A copy of a production database: nothing is sent from it, and no secret stays in it."""

from __future__ import annotations

import io
import json
import re
import sys
from smtplib import SMTPException

import pytest
from django.apps import apps
from django.apps.registry import Apps
from django.core import checks
from django.core.mail import EmailMessage, send_mail
from django.core.management import CommandError, call_command
from django.db import connection, models
from django.db.models.query import QuerySet

import mailpool
from mailpool import marker, scrub
from mailpool.checks import check_marker, check_stored_secrets
from mailpool.exceptions import NoRoute, SecretError, WrongSite
from mailpool.management.commands.mailpool_scrub import Command
from mailpool.models import Credential, SiteMarker
from mailpool.vault import EncryptedTextField, generate_key, get_keyring
from mailpool.verification import send_test_message, verify_credential
from tests.factories import CredentialFactory
from tests.smtpd import PASSWORD

pytestmark = pytest.mark.django_db


def run(name, *args, **options):
    """What the command printed, and its exit status."""
    out = io.StringIO()
    try:
        call_command(f"mailpool_{name}", *args, stdout=out, stderr=out, **options)
    except SystemExit as end:
        status = end.code
    else:
        status = 0
    text = out.getvalue()
    assert PASSWORD not in text
    assert get_keyring().newest not in text or name == "status"
    return text, status


@pytest.fixture
def use_site(settings):
    """Call this installation something: ``use_site("staging")``."""

    def use(name, **more):
        settings.MAILPOOL = {**settings.MAILPOOL, "SITE": name, **more}

    return use


@pytest.fixture
def staging(use_site):
    """A staging site on a copy of production's database."""
    marker.write("production")
    use_site("staging")


def whole_database() -> str:
    """Every row of every table, past Django's models."""
    rows = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            rows += cursor.fetchall()
    return str(rows)


def holds_a_secret() -> bool:
    return f"${get_keyring().newest}$" in whole_database()


# Sending


def send(slug="bob"):
    with mailpool.use_tenant(slug):
        send_mail("Hello", "Text", f"{slug}@example.com", ["you@example.com"])


def test_nothing_is_sent_from_another_sites_database(
    staging, mail_host, make_credential, real_mail
):
    bob = make_credential(mail_host, "bob")
    make_credential(mail_host)
    message = EmailMessage("Hello", "Text", "x@example.com", ["you@example.com"])
    with pytest.raises(WrongSite, match=r"site “production”.*this site is “staging”"):
        message.send()  # the site's own credential is production's as well
    assert message.mailpool_result.status == "failed"
    with pytest.raises(WrongSite, match="run mailpool_scrub"):
        send()
    assert isinstance(
        send_test_message(bob, "you@example.com", sender="b@example.com").error, WrongSite
    )
    report = verify_credential(bob)
    assert "belongs to the site “production”" in report.failure.detail
    assert (mail_host.delivered, mail_host.logins) == ([], [])


def test_a_copy_that_is_loaded_under_a_running_process_sends_nothing(
    use_site, mail_host, make_credential, real_mail
):
    use_site("staging")
    marker.write("staging")
    make_credential(mail_host, "bob")
    send()
    assert mailpool.stats().open == 1
    marker.write("production")
    with pytest.raises(WrongSite):
        send()
    marker.write("staging")
    send()
    assert len(mail_host.delivered) == 2


@pytest.mark.parametrize(
    ("site", "found"),
    [(None, None), (None, "production"), ("staging", None), ("staging", "staging")],
)
def test_what_is_no_other_sites_is_sent_from(
    site, found, use_site, mail_host, make_credential, real_mail
):
    use_site(site)
    marker.write(found)
    make_credential(mail_host, "bob")
    send()
    assert [message.login for message in mail_host.delivered] == ["bob"]


@pytest.mark.parametrize("site", [None, "production"])
def test_the_marker_costs_no_query(
    site, use_site, settings, django_assert_num_queries, mailpool_outbox
):
    use_site(site)
    settings.MAILPOOL = {**settings.MAILPOOL, "RECORDS": "off"}
    marker.write(site)
    CredentialFactory(tenant__slug="bob")
    with django_assert_num_queries(1):
        send()
    assert len(mailpool_outbox) == 1


@pytest.fixture
def no_marker_table(transactional_db):
    """A database that is not migrated that far yet."""
    with connection.schema_editor() as editor:
        editor.delete_model(SiteMarker)
    yield
    with connection.schema_editor() as editor:
        editor.create_model(SiteMarker)


def test_without_the_table(no_marker_table, use_site, mail_host, make_credential, real_mail):
    """Who does not use SITE sends; who does gets no traceback from a check, and sends nothing."""
    make_credential(mail_host, "bob")
    send()
    assert check_marker(databases=["default"]) == []
    use_site("staging")
    assert check_marker(databases=["default"]) == []
    with pytest.raises(CommandError, match="Has 'migrate' been run"):
        run("scrub", "--no-input")
    with pytest.raises(Exception, match="mailpool_sitemarker"):
        send()
    assert len(mail_host.delivered) == 1


# Where the marker comes from


def test_migrate_marks_a_database_that_has_no_marker(use_site):
    use_site(" production\n")  # as it may come out of a file
    call_command("migrate", verbosity=0)
    assert marker.read() == "production"
    use_site("staging")
    call_command("migrate", verbosity=0, skip_checks=True)
    assert marker.read() == "production"


def test_migrate_without_a_name_marks_nothing():
    call_command("migrate", verbosity=0)
    assert not SiteMarker.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_flush_leaves_the_database_this_sites(use_site):
    use_site("staging")
    marker.write("production")
    call_command("flush", verbosity=0, interactive=False)
    assert marker.read() == "staging"


def test_migrating_back_to_where_there_is_no_marker(use_site):
    use_site("production")
    marker.mark_new(using="default", apps=Apps())
    assert not SiteMarker.objects.exists()


# Checks and status


def test_check_says_whose_database_it_is(staging, use_site, capsys):
    CredentialFactory()
    (warning,) = check_marker(databases=["default"])
    assert warning.id == "mailpool.W030"
    assert "“production”" in warning.msg
    assert "mailpool_scrub" in warning.hint
    assert check_marker(databases=[]) == []
    call_command("check", databases=["default"])
    assert "mailpool.W030" in capsys.readouterr().err
    use_site("production")
    assert check_marker(databases=["default"]) == []


def test_nobody_is_asked_for_the_key_of_another_site(staging, use_site):
    """The cure for E030 is to put the key back, which is the last thing a copy should get."""
    CredentialFactory()
    use_site("staging", ENCRYPTION_KEYS=[generate_key()])
    assert check_stored_secrets(databases=["default"]) == []
    use_site("production")
    assert [error.id for error in check_stored_secrets(databases=["default"])] == ["mailpool.E030"]


@pytest.mark.parametrize("value", ["", "  ", 5, "x" * 101])
def test_site_that_is_no_name(value, use_site):
    use_site(value)
    assert "mailpool.E009" in [found.id for found in checks.run_checks()]


def test_status_and_check_say_whose_database_it_is(staging, use_site, mail_host, make_credential):
    make_credential(mail_host, "bob")
    text, status = run("status")
    assert (status, "belongs to the site “production”" in text) == (1, True)
    text, status = run("status", "--json")
    site = json.loads(text)["site"]
    assert (status, site) == (1, {"name": "staging", "database_belongs_to": "production"})
    with pytest.raises(CommandError, match="belongs to the site “production”"):
        run("check")
    assert mail_host.logins == []
    use_site("production")
    text, status = run("status")
    assert (status, "the database is its own" in text) == (0, True)
    assert run("check")[1] == 0
    SiteMarker.objects.all().delete()
    assert "has no marker: run migrate" in run("status")[0]
    use_site(None)
    assert "marker" not in run("status")[0]


# mailpool_scrub


def test_scrub_leaves_no_secret_in_any_column(staging):
    credentials = [CredentialFactory() for _ in range(3)]
    CredentialFactory(is_active=False)
    CredentialFactory(username="", password="")
    assert holds_a_secret()
    text, status = run("scrub", "--no-input")
    assert status == 0
    assert "it belongs to “production”. This site is “staging”." in text
    assert "Done: it belongs to “staging”." in text
    assert not holds_a_secret()
    assert marker.read() == "staging"
    assert set(Credential.objects.values_list("is_active", "password_set_at")) == {(False, None)}
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT password FROM mailpool_credential")
        assert list(cursor.fetchall()) == [("",)]
    assert not Credential.objects.get(pk=credentials[0].pk).has_password


def test_scrubbed_accounts_say_what_is_missing(staging, mail_host, make_credential, real_mail):
    bob = make_credential(mail_host, "bob")
    run("scrub", "--no-input")
    with pytest.raises(NoRoute, match="all of them are inactive"):
        send()
    assert run("check", "--tenant", "bob")[1] == 1
    Credential.objects.filter(pk=bob.pk).update(is_active=True)
    with pytest.raises(SecretError, match="No password is stored for bob"):
        send()
    text, status = run("check")
    assert (status, "No password is stored for bob" in text) == (1, True)
    assert mail_host.logins == []
    bob.refresh_from_db()
    bob.password = PASSWORD  # the account that staging has for itself
    bob.save()
    send()
    assert len(mail_host.delivered) == 1


def test_scrub_closes_the_connections_of_its_process(mail_host, make_credential, real_mail):
    make_credential(mail_host, "bob")
    send()
    assert mailpool.stats().open == 1
    run("scrub", "--no-input")
    assert mailpool.stats().open == 0


class Hidden(models.Manager):
    def get_queryset(self):
        return super().get_queryset().none()


class Stubborn(QuerySet):
    def update(self, **kwargs):
        raise TypeError("not here")


@pytest.fixture
def foreign_models(transactional_db):
    """Models of another app with encrypted fields: all that could be in a scrub's way."""
    with_dates = {
        "__module__": __name__,
        "token": EncryptedTextField(null=True, changed_at="token_set_at"),
        "token_set_at": models.DateTimeField(null=True),
        "objects": Hidden.from_queryset(Stubborn)(),
        "Meta": type("Meta", (), {"app_label": "mailpool", "base_manager_name": "objects"}),
    }
    parent = type("ScrubToken", (models.Model,), with_dates)
    child = type(
        "ScrubChild",
        (parent,),
        {
            "__module__": __name__,
            "pin": EncryptedTextField(db_column="pin_code", changed_at="pin_set_at"),
            "pin_set_at": models.DateTimeField(auto_now_add=True),  # can't be empty
            "Meta": type("Meta", (), {"app_label": "mailpool"}),
        },
    )
    with connection.schema_editor() as editor:
        editor.create_model(parent)
        editor.create_model(child)
    yield parent, child
    with connection.schema_editor() as editor:
        editor.delete_model(child)
        editor.delete_model(parent)
    for model in (parent, child):
        del apps.all_models["mailpool"][model._meta.model_name]
    apps.clear_cache()


def test_scrub_reaches_every_encrypted_field_of_every_app(foreign_models, staging, monkeypatch):
    monkeypatch.setattr(scrub, "BATCH", 2)
    parent, child = foreign_models
    CredentialFactory()
    for number in range(1, 6):
        child(pk=number, token="a token", pin="1234").save(force_insert=True)
    parent(pk=6, token="another").save(force_insert=True)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE mailpool_scrubtoken SET token = NULL WHERE id = 5")
        # Nothing that mailpool ever wrote; whoever did meant it to be one.
        cursor.execute("UPDATE mailpool_scrubtoken SET token = 'in clear text' WHERE id = 4")
    text, status = run("scrub", "--json", "--no-input")
    assert status == 0
    found = json.loads(text)["secrets"]
    assert {place: count for place, count in found.items() if count} == {
        "mailpool.Credential.password": 1,
        "mailpool.ScrubToken.token": 5,
        "mailpool.ScrubChild.pin": 5,
    }
    assert not holds_a_secret()
    assert "in clear text" not in whole_database()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM mailpool_scrubtoken WHERE token_set_at IS NOT NULL")
        assert cursor.fetchone() == (0,)


def test_dry_run_changes_nothing(staging):
    CredentialFactory()
    CredentialFactory(is_active=False)
    before = whole_database()
    text, status = run("scrub", "--dry-run")
    assert status == 0
    assert re.search(r"credentials to switch off +1\n", text)
    assert re.search(r"secrets in mailpool\.Credential\.password +2\n", text)
    assert "Done" not in text
    result = json.loads(run("scrub", "--dry-run", "--json")[0])
    assert (result["credentials"], result["dry_run"]) == (1, True)
    assert (result["belonged_to"], result["site"]) == ("production", "staging")
    assert whole_database() == before


def answer(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.parametrize("typed", ["staging\n", "yes\n", "\n", ""])
def test_scrub_changes_nothing_without_confirmation(staging, monkeypatch, typed):
    CredentialFactory()
    before = whole_database()
    answer(monkeypatch, typed)
    with pytest.raises(CommandError, match=r"[Nn]othing was changed"):
        run("scrub")
    with pytest.raises(CommandError, match="--json can't ask"):
        run("scrub", "--json")
    assert whole_database() == before


def test_scrub_is_confirmed_with_the_name_of_the_site(staging, monkeypatch, capsys):
    CredentialFactory()
    answer(monkeypatch, "production\n")
    assert run("scrub")[1] == 0
    assert "Type production to go on" in capsys.readouterr().out
    assert not holds_a_secret()


def test_scrub_without_a_marker_is_confirmed_with_the_name_of_the_database(monkeypatch, capsys):
    CredentialFactory()
    name = str(connection.settings_dict["NAME"]).rsplit("/", 1)[-1]
    answer(monkeypatch, f"{name}\n")
    assert "it has no marker of a site. This site has no name" in run("scrub")[0]
    assert f"Type {name} to go on" in capsys.readouterr().out
    assert not holds_a_secret()


def test_scrub_of_a_site_without_a_name_clears_the_marker():
    marker.write("production")
    CredentialFactory()
    run("scrub", "--no-input")
    assert not SiteMarker.objects.exists()
    assert not holds_a_secret()


@pytest.mark.parametrize("args", [["--no-input"], ["--dry-run"], ["--no-input", "--json"]])
def test_scrub_refuses_this_sites_own_database(use_site, args):
    use_site("production")
    marker.write("production")
    CredentialFactory()
    before = whole_database()
    with pytest.raises(CommandError, match=r"this very site: it is no copy.*--this-site"):
        run("scrub", *args)
    assert whole_database() == before
    assert run("scrub", "--no-input", "--this-site")[1] == 0
    assert not holds_a_secret()
    assert marker.read() == "production"


def test_a_site_that_changed_its_name_keeps_its_secrets(staging, mailpool_outbox, monkeypatch):
    CredentialFactory(tenant__slug="bob")
    assert run("scrub", "--mark-only", "--dry-run")[1] == 0
    answer(monkeypatch, "no\n")
    with pytest.raises(CommandError, match="Not confirmed"):
        run("scrub", "--mark-only")
    assert marker.read() == "production"
    answer(monkeypatch, "production\n")
    assert "Done: it belongs to “staging”." in run("scrub", "--mark-only")[0]
    assert marker.read() == "staging"
    send()
    assert mailpool_outbox[0].username == Credential.objects.get().username


def test_mark_only_needs_a_name():
    with pytest.raises(CommandError, match=r"set MAILPOOL\['SITE'\] first"):
        run("scrub", "--mark-only", "--no-input")


def test_scrub_needs_no_key(staging, use_site):
    CredentialFactory()
    key = get_keyring().newest
    use_site("staging", ENCRYPTION_KEYS=[])
    assert "mailpool.E012" in [found.id for found in checks.run_checks()]
    out = io.StringIO()
    command = Command(stdout=out)
    options = command.create_parser("manage.py", "mailpool_scrub").parse_args(["--no-input"])
    command.execute(**vars(options))  # as manage.py does it: with the command's system checks
    assert "Done" in out.getvalue()
    assert key not in whole_database()


def test_scrub_that_was_interrupted_goes_on(staging, monkeypatch, mailpool_outbox):
    monkeypatch.setattr(scrub, "BATCH", 2)
    for _ in range(5):
        CredentialFactory(tenant__slug=f"t{_}")

    def interrupt(done):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scrub.scrub(progress=interrupt)
    left = scrub.find()
    assert (left.active, left.total) == (0, 1)  # what was removed stays removed
    assert marker.read() == "production"
    for slug in ("t0", "t4"):
        with pytest.raises((NoRoute, SMTPException)):
            send(slug)
    assert run("scrub", "--no-input")[1] == 0
    assert not holds_a_secret()
    assert not scrub.find()


def test_what_is_entered_meanwhile_is_not_overlooked(staging, monkeypatch):
    CredentialFactory()
    with monkeypatch.context() as patch:
        patch.setattr(scrub.delivery, "close_connections", CredentialFactory)
        text, status = run("scrub", "--no-input")
    assert (status, "1 secrets and 1 active credentials" in text) == (1, True)
    assert "Done" not in text
    assert marker.read() == "production"
    assert run("scrub", "--no-input")[1] == 0
    assert marker.read() == "staging"
    assert not holds_a_secret()
