"""The audit: everything that happens to a credential is in it, and no secret ever."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.core import serializers
from django.core.management import CommandError
from django.db import DatabaseError, connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from mailpool import audit, rotation, scrub, verification
from mailpool.audit import Action, AuditEntry, acting
from mailpool.models import Credential, MailServer, Sender
from mailpool.moments import moment
from mailpool.relocation import relocate
from mailpool.vault import Sealed, generate_key
from tests.factories import CredentialFactory, MailServerFactory, SenderFactory, TenantFactory
from tests.smtpd import PASSWORD
from tests.test_admin import CREDENTIALS, SERVERS, admin, credential_data, inline, staff  # noqa: F401
from tests.test_commands import run, use_keys

pytestmark = pytest.mark.django_db(transaction=True)

TRAIL = "/admin/mailpool/auditentry/"


@pytest.fixture
def bob(db):
    """A credential whose own entries are out of the way."""
    credential = CredentialFactory(tenant__slug="bob", username="bob", server__name="Main")
    forget()
    return credential


def forget():
    """Begin anew, past everything that keeps entries."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM mailpool_auditentry")


def entries(**filters):
    """(action, details) of each entry, in the order in which they were written.

    Without *filters* of those that are not about a server or an OAuth client.
    """
    filters = filters or {"server_id": None, "oauth_client_id": None}
    found = AuditEntry.objects.filter(**filters).order_by("pk")
    return [(entry.action, entry.details) for entry in found]


def last():
    return AuditEntry.objects.first()


def everything():
    """All that the table holds, as the database has it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM mailpool_auditentry")
        return "\n".join(str(value) for row in cursor.fetchall() for value in row)


@contextmanager
def no_table():
    """Nothing can be recorded inside the block."""
    with connection.schema_editor() as editor:
        editor.delete_model(AuditEntry)
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(AuditEntry)


# What is recorded


def test_creation_says_what_was_entered():
    credential = CredentialFactory(tenant__slug="bob", username="bob", server__name="Main")
    assert entries() == [
        (
            "created",
            "tenant: bob; mail server: Main; username: bob; login: password; password: set; if "
            "From is not among the senders: refuse; priority: 10; active: yes",
        )
    ]
    entry = last()
    assert entry.credential_id == credential.pk
    assert (entry.tenant, entry.server, entry.username) == ("bob", "Main", "bob")
    assert (entry.actor, entry.actor_key, entry.way) == ("", "", "code")
    assert timezone.now() - entry.when < timedelta(minutes=1)


def test_a_change_names_the_fields_with_old_and_new(bob):
    bob.tenant = None
    bob.server = MailServerFactory(name="Other")
    bob.priority = 3
    bob.default_from = "bob@example.com"
    bob.save()
    text = (
        "tenant: bob → (site); mail server: Main → Other; "
        "default From: (empty) → bob@example.com; priority: 10 → 3"
    )
    assert entries() == [("changed", text)]
    assert last().server == "Other"


def test_a_key_may_be_text(bob):
    bob.pk, bob.priority = str(bob.pk), 3
    bob.save()
    assert entries() == [("changed", "priority: 10 → 3")]
    key = uuid4()
    MailServer.objects.create(pk=str(key), name="By text", host="smtp.example.com")
    assert last().action == "created"
    assert last().server_id == key


def test_each_thing_that_one_save_does_is_an_entry(bob):
    bob.username, bob.password, bob.is_active = "robert", "another", False
    bob.save()
    assert sorted(entries()) == [
        ("changed", "username: bob → robert"),
        ("disabled", ""),
        ("password_set", ""),
    ]
    bob.is_active = True
    bob.save(update_fields=["is_active"])
    assert last().action == "enabled"


def test_saving_without_a_change_writes_nothing(bob):
    bob.save()
    Credential.objects.get(pk=bob.pk).save()
    Credential.objects.update(priority=10, is_active=True)
    assert entries() == []


def test_what_is_compared_is_the_row_and_not_the_instance(bob):
    Credential.objects.update(priority=3)
    forget()
    bob.save()  # whose priority is an old one
    assert entries() == [("changed", "priority: 3 → 10")]


def test_a_password_is_set_even_if_it_is_the_same_one(bob):
    bob.password = PASSWORD
    bob.save()
    assert entries() == [("password_set", "")]
    bob.username = bob.password = ""
    bob.save()
    assert entries()[1:] == [("password_removed", ""), ("changed", "username: bob → (empty)")]


def test_senders_are_changes_of_their_credential(bob):
    sender = SenderFactory(credential=bob, address="Shop@Example.com")
    sender.address = "@example.com"
    sender.save()
    other = CredentialFactory(tenant=bob.tenant)
    forget()
    sender.credential = other
    sender.save()
    sender.delete()
    Sender.objects.bulk_create([Sender(credential=bob, address="a@example.com")])
    Sender.objects.all().delete()
    assert entries(credential_id=bob.pk) == [
        ("changed", "sender removed: @example.com"),
        ("changed", "sender added: a@example.com"),
        ("changed", "sender removed: a@example.com"),
    ]
    assert entries(credential_id=other.pk) == [
        ("changed", "sender added: @example.com"),
        ("changed", "sender removed: @example.com"),
    ]


def test_added_and_changed_senders_have_their_addresses(bob):
    sender = SenderFactory(credential=bob, address="Shop@Example.com")
    sender.address = "@example.com"
    sender.save()
    sender.save()
    assert entries() == [
        ("changed", "sender added: shop@example.com"),
        ("changed", "sender: shop@example.com → @example.com"),
    ]


@pytest.mark.parametrize("way", ["credential", "queryset", "tenant"])
def test_deletion_outlives_the_credential_under_its_names(bob, way):
    SenderFactory(credential=bob)
    forget()
    key = bob.pk
    {
        "credential": bob.delete,
        "queryset": Credential.objects.all().delete,
        "tenant": bob.tenant.delete,
    }[way]()
    assert not Credential.objects.exists()
    assert entries() == [("deleted", "")]
    entry = last()
    assert entry.credential_id == key
    assert (entry.tenant, entry.server, entry.username) == ("bob", "Main", "bob")


def test_what_is_saved_anew_after_its_deletion_is_recorded(bob):
    bob.delete()
    forget()
    bob.password = PASSWORD
    bob.save(force_insert=True)
    assert [action for action, _ in entries()] == ["created"]
    assert last().credential_id == bob.pk


def test_update_is_recorded_row_by_row(bob):
    mary = CredentialFactory(tenant__slug="mary", username="mary", is_active=False)
    forget()
    assert Credential.objects.update(priority=F("priority") + 1, is_active=False) == 2
    assert sorted(entries(credential_id=bob.pk)) == [
        ("changed", "priority: 10 → 11"),
        ("disabled", ""),
    ]
    assert entries(credential_id=mary.pk) == [("changed", "priority: 10 → 11")]
    forget()
    assert Credential.objects.filter(priority=11, tenant=bob.tenant).update(priority=5) == 1
    assert entries() == [("changed", "priority: 11 → 5")]
    assert Credential.objects.filter(username="nobody").update(priority=5) == 0


def test_update_in_batches_misses_none(bob, monkeypatch):
    monkeypatch.setattr("mailpool.changes.BATCH", 2)
    CredentialFactory.create_batch(4)
    forget()
    assert Credential.objects.update(priority=3) == 5
    assert entries() == [("changed", "priority: 10 → 3")] * 5


def test_removing_passwords_by_update_is_recorded(bob):
    Credential.objects.update(password="")
    assert entries() == [("password_removed", "")]


def test_bulk_operations_are_recorded(bob):
    bob.priority = 7
    Credential.objects.bulk_update([bob], ["priority"])
    assert entries() == [("changed", "priority: 10 → 7")]
    forget()
    row = Credential(server=bob.server, username="new")
    twice = Credential(tenant=bob.tenant, server=bob.server, username="bob")
    twice.scope = bob.scope
    Credential.objects.bulk_create([row, twice], ignore_conflicts=True)
    assert Credential.objects.count() == 2
    assert [action for action, _ in entries()] == ["created"]
    assert last().credential_id == row.pk


def test_bulk_create_reads_new_rows_once_they_are_there(bob):
    rows = [Credential(server=bob.server, username=f"u{number}") for number in range(3)]
    with CaptureQueriesContext(connection) as captured:
        Credential.objects.bulk_create(rows)
    statements = [each["sql"].split()[0] for each in captured]
    assert statements.index("INSERT") < statements.index("SELECT")
    assert [action for action, _ in entries()] == ["created"] * 3


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_entries_are_kept_for_a_log_that_is_written(bob, caplog, level):
    """An import has tens of thousands of them in one transaction."""
    with caplog.at_level(level, logger="mailpool.audit"):
        with transaction.atomic():
            bob.save()
            before = len(connection.run_on_commit)
            audit.record(Action.CHANGED, bob, "x")
            assert len(connection.run_on_commit) - before == (level == "INFO")
        assert len(caplog.records) == (level == "INFO")
    assert last().details == "x"


def test_bulk_create_does_not_change_rows_unseen(bob):
    with pytest.raises(TypeError, match="for the audit"):
        Credential.objects.bulk_create(
            [bob], update_conflicts=True, update_fields=["priority"], unique_fields=["id"]
        )


def test_relations_are_recorded(bob):
    other = MailServerFactory(name="Other")
    other.credentials.add(bob)
    assert entries() == [("changed", "mail server: Main → Other")]


def test_fixtures_are_recorded(bob):
    SenderFactory(credential=bob, address="a@example.com")
    dump = serializers.serialize("json", [*Sender.objects.all(), bob, bob.server, bob.tenant])
    Credential.objects.update(priority=1)
    forget()
    for found in serializers.deserialize("json", dump):
        found.save()
    assert entries() == [("changed", "priority: 1 → 10")]
    key = bob.pk
    bob.delete()
    forget()
    # The sender first, whose credential is not there yet: as in loaddata.
    with transaction.atomic(), connection.constraint_checks_disabled():
        for found in serializers.deserialize("json", dump):
            found.save()
    added, created = AuditEntry.objects.order_by("pk")
    assert (added.details, added.credential_id) == ("sender added: a@example.com", key)
    assert created.action == "created"


def test_details_are_in_one_language(bob):
    with translation.override("de"):  # in which Django itself knows the word
        bob.username = "robert"
        bob.save()
    assert entries() == [("changed", "username: bob → robert")]


def test_entries_are_one_line_of_printable_text(bob):
    bob.username = "bob\r\n2026-01-01 forged\x1b[2J\x00" + "x" * 300
    audit.record(Action.EXPORTED, bob, "to a\nfile")
    entry = last()
    assert all(char.isprintable() for char in entry.username + entry.details)
    assert len(entry.username) == 255


# Who


def test_who_acts_is_recorded_with_the_way(bob):
    user = get_user_model().objects.create_user("alice")
    with acting(user, "tenant's form"):
        Credential.objects.update(priority=1)
        with acting(None, "import"):
            Credential.objects.update(priority=2)
        with acting(AnonymousUser(), "sign-up"):
            Credential.objects.update(priority=3)
    Credential.objects.update(priority=4)
    found = AuditEntry.objects.order_by("pk").values_list("actor", "actor_key", "way")
    key = str(user.pk)
    assert list(found) == [
        ("alice", key, "tenant's form"),
        ("alice", key, "import"),
        ("", "", "sign-up"),
        ("", "", "code"),
    ]
    user.delete()
    assert AuditEntry.objects.filter(actor="alice", actor_key=key).count() == 2


def test_acting_ends_with_the_block_even_after_an_error(bob):
    user = get_user_model().objects.create_user("alice")
    with pytest.raises(ZeroDivisionError), acting(user, "form"):
        raise ZeroDivisionError
    Credential.objects.update(priority=1)
    assert (last().actor, last().way) == ("", "code")


# All or nothing


def test_what_is_rolled_back_leaves_nothing(bob, caplog):
    caplog.set_level(logging.INFO, "mailpool.audit")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        bob.priority = 3
        bob.save()
        assert entries() == [("changed", "priority: 10 → 3")]
        raise ZeroDivisionError
    assert entries() == []
    assert caplog.records == []


CHANGES = {
    "create": lambda bob: CredentialFactory(tenant=bob.tenant, server=bob.server),
    "save": lambda bob: bob.save(update_fields=["priority"]),
    "update": lambda bob: Credential.objects.update(priority=3),
    "bulk_update": lambda bob: Credential.objects.bulk_update([bob], ["priority"]),
    "bulk_create": lambda bob: Credential.objects.bulk_create([Credential(server=bob.server)]),
    "delete": lambda bob: bob.delete(),
    "delete with the tenant": lambda bob: bob.tenant.delete(),
    "add a sender": lambda bob: SenderFactory(credential=bob, address="b@example.com"),
    "remove a sender": lambda bob: bob.senders.all().delete(),
    "relocate": lambda bob: relocate(bob.server, host="b.example.com", port=1, security="tls"),
    "scrub": lambda bob: scrub.scrub(),
}


def state():
    rows = [*Credential.objects.order_by("pk").values(), *Sender.objects.order_by("pk").values()]
    return [*rows, *MailServer.objects.order_by("pk").values()]


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_changes_that_can_not_be_recorded(bob, change):
    SenderFactory(credential=bob, address="a@example.com")
    bob.priority = 3
    before = state()
    with no_table(), pytest.raises(DatabaseError):
        CHANGES[change](bob)
    assert state() == before


def test_keys_are_not_rotated_unseen(bob, settings):
    use_keys(settings, generate_key(), *settings.MAILPOOL["ENCRYPTION_KEYS"])
    before = state()
    with no_table(), pytest.raises(DatabaseError):
        rotation.rotate()
    assert state() == before


# What changes no row, or many


def test_relocation_is_recorded_with_each_credential(bob):
    mary = CredentialFactory(tenant__slug="mary", username="mary", server=bob.server)
    none = CredentialFactory(tenant=None, username="", password="", server=bob.server)
    Credential.objects.filter(pk=mary.pk).update(password=Sealed(str(bob.password_ciphertext)))
    forget()
    relocate(bob.server, host="new.example.com", port=465, security="tls")
    text = "from smtp.example.com:587 (starttls) to new.example.com:465 (tls)"
    assert entries(credential_id=bob.pk) == [("moved", text)]
    assert entries(credential_id=none.pk) == [("moved", text)]
    behind = f"{text}; the password did not open and stayed behind"
    assert entries(credential_id=mary.pk) == [("moved", behind)]
    assert len(entries()) == 3
    address = "host: smtp.example.com → new.example.com; port: 587 → 465; security: starttls → tls"
    assert entries(server_id=bob.server_id) == [("changed", address)]


def test_rotation_is_one_entry_and_no_new_passwords(bob, settings):
    CredentialFactory()
    forget()
    use_keys(settings, generate_key(), *settings.MAILPOOL["ENCRYPTION_KEYS"])
    rotation.rotate(dry_run=True)
    assert entries() == []
    newest = rotation.rotate().newest
    assert entries() == [("rotated", f"2 passwords encrypted with the key {newest}")]
    assert last().credential_id is None
    rotation.rotate()
    assert len(entries()) == 1


def test_scrubbing_is_recorded_and_keeps_the_entries(bob):
    bob.priority = 3
    bob.save()
    assert run("scrub", "--no-input")[1] == 0
    assert entries() == [
        ("changed", "priority: 10 → 3"),
        ("scrubbed", "1 credentials switched off"),
        ("scrubbed", "1 passwords removed"),
    ]
    assert last().way == "mailpool_scrub"


def test_import_is_recorded_and_a_dry_run_is_not(db, monkeypatch):
    monkeypatch.setenv("EMAIL_URL", f"smtp+tls://shop:{PASSWORD}@smtp.example.com:587")
    run("import_env", "--dry-run")
    assert entries() == []
    run("import_env", "--sender", "@shop.example")
    assert [action for action, _ in entries()] == ["created", "changed"]
    assert {entry.way for entry in AuditEntry.objects.all()} == {"mailpool_import_env"}


def test_verification_by_a_process_is_recorded_when_it_is_news(mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    forget()
    for _ in range(3):
        run("check")
    assert entries() == [("verified", "ok")]
    credential.password = "wrong"
    credential.save()
    for _ in range(3):
        run("check")
    assert entries()[1:] == [("password_set", ""), ("verified", "failed: Log in (AUTH)")]
    assert last().way == "mailpool_check"


def test_a_person_who_verifies_is_always_recorded(mail_host, make_credential):
    credential = make_credential(mail_host, "bob")
    forget()
    with acting(get_user_model().objects.create_user("alice"), "form"):
        for _ in range(2):
            assert verification.verify_credential(credential).ok
    assert entries(actor="alice") == [("verified", "ok")] * 2


def test_test_messages_are_recorded_and_ordinary_ones_are_not(
    mail_host, make_credential, real_mail
):
    from django.core.mail import send_mail

    make_credential(mail_host)
    forget()
    send_mail("hello", "text", "site@example.com", ["a@example.com"])
    assert len(mail_host.delivered) == 1
    assert entries() == []
    run("send_test", "--from", "from@example.com", "--to", "me@example.com")
    assert entries() == [("test_sent", "to me@example.com: sent")]


def test_a_verification_is_told_even_if_it_can_not_be_recorded(mail_host, make_credential, caplog):
    credential = make_credential(mail_host, "bob")
    with no_table(), transaction.atomic():
        assert verification.verify_credential(credential).ok
        assert Credential.objects.exists()  # the transaction is usable
    (record,) = [r for r in caplog.records if r.name == "mailpool.audit"]
    assert record.levelname == "ERROR"
    assert "could not be written" in record.message
    assert record.audit_action == "verified"


# Logging


def test_each_entry_is_logged_with_stable_fields(bob, caplog):
    caplog.set_level(logging.INFO, "mailpool.audit")
    with acting(get_user_model().objects.create_user("alice"), "form"):
        Credential.objects.update(is_active=False)
    (record,) = caplog.records
    assert record.name == "mailpool.audit"
    assert record.levelno == logging.INFO
    assert record.message == "disabled: bob, bob @ Main by alice (form)"
    assert record.event == "mailpool.audit.disabled"
    assert record.audit_credential == str(bob.pk)
    for name, value in audit.as_dict(last()).items():
        assert getattr(record, f"audit_{name}") == value


# Never a secret


def test_no_secret_is_in_any_column_nor_in_the_log(
    admin,  # noqa: F811
    mail_host,
    make_credential,
    caplog,
    settings,
):
    caplog.set_level(logging.DEBUG)
    secrets = [PASSWORD, "first secret 1", "second secret 2", "third secret 3"]
    first, second, third = secrets[1:]
    tenant, server = TenantFactory(), MailServerFactory()
    data = credential_data(tenant=tenant.pk, server=server.pk, password=first)
    assert admin.post(f"{CREDENTIALS}add/", data).status_code == 302
    credential = Credential.objects.get()
    sealed = [str(credential.password_ciphertext)]
    change = f"{CREDENTIALS}{credential.pk}/change/"
    assert admin.post(change, credential_data(credential, password=second)).status_code == 302
    credential = Credential.objects.get()
    sealed.append(str(credential.password_ciphertext))
    credential.password = third
    credential.save()
    sealed.append(str(credential.password_ciphertext))
    wrong = make_credential(mail_host, "mary", password=third)
    verification.verify_credential(wrong)
    verification.send_test_message(wrong, "a@example.com")
    relocate(server, host="new.example.com", port=587, security="starttls")
    use_keys(settings, generate_key(), *settings.MAILPOOL["ENCRYPTION_KEYS"])
    rotation.rotate()
    Credential.objects.update(password="")
    credential.delete()
    actions = set(AuditEntry.objects.values_list("action", flat=True))
    assert actions >= {"created", "password_set", "verified", "test_sent", "moved", "rotated"}
    logged = "\n".join(str(vars(r)) for r in caplog.records if r.name == "mailpool.audit")
    pages = "".join(
        admin.get(f"{TRAIL}{pk}/change/").content.decode()
        for pk in AuditEntry.objects.values_list("pk", flat=True)
    )
    pages += admin.get(TRAIL).content.decode() + run("audit", "--json")[0] + run("audit")[0]
    for secret in [*secrets, *sealed]:
        for place in (everything(), logged, pages):
            assert secret not in place
            assert f"length {len(secret)}" not in place


# The admin


def test_what_is_done_in_the_admin_is_recorded_with_the_user(admin, bob):  # noqa: F811
    data = credential_data(
        bob, password="another", priority=3, **inline("senders", {"address": "a@example.com"})
    )
    assert admin.post(f"{CREDENTIALS}{bob.pk}/change/", data).status_code == 302
    assert sorted(entries()) == [
        ("changed", "priority: 10 → 3"),
        ("changed", "sender added: a@example.com"),
        ("password_set", ""),
    ]
    admin.post(CREDENTIALS, {"action": "deactivate", "_selected_action": [bob.pk]})
    assert last().action == "disabled"
    admin.post(f"{CREDENTIALS}{bob.pk}/delete/", {"post": "yes"})
    assert last().action == "deleted"
    found = set(AuditEntry.objects.values_list("actor", "way"))
    assert found == {("root", "admin")}


def test_pages_of_servers_and_tenants_are_recorded_with_the_user(admin, bob):  # noqa: F811
    address = {"host": "new.example.com", "port": 587, "security": "starttls", "confirmed": "yes"}
    assert admin.post(f"{SERVERS}{bob.server.pk}/move/", address).status_code == 302
    assert last().action == "moved"
    url = f"/admin/mailpool/tenant/{bob.tenant.pk}/delete/"
    assert admin.post(url, {"post": "yes"}).status_code == 302
    assert last().action == "deleted"
    assert set(AuditEntry.objects.values_list("actor", "way")) == {("root", "admin")}


def test_verifications_in_the_admin_are_recorded_with_the_user(
    admin,  # noqa: F811
    mail_host,
    make_credential,
):
    credential = make_credential(mail_host, "bob")
    forget()
    for _ in range(2):
        admin.post(f"{CREDENTIALS}{credential.pk}/verify/", {"recipient": ""})
    Credential.objects.update(default_from="bob@example.com")
    admin.post(f"{CREDENTIALS}{credential.pk}/send-test/", {"recipient": "me@example.com"})
    text = "to me@example.com: sent"
    assert entries(actor="root", way="admin") == [("verified", "ok")] * 2 + [("test_sent", text)]


def test_nobody_changes_or_removes_an_entry_in_the_admin(admin, bob):  # noqa: F811
    Credential.objects.update(priority=3)
    entry = last()
    before = everything()
    posts = [
        (f"{TRAIL}add/", {"action": "created", "way": "forged"}),
        (f"{TRAIL}{entry.pk}/change/", {"details": "forged"}),
        (f"{TRAIL}{entry.pk}/delete/", {"post": "yes"}),
    ]
    for url, data in posts:
        assert admin.post(url, data).status_code == 403, url
    for action in ("delete_selected", "delete"):
        chosen = {"action": action, "_selected_action": [entry.pk], "post": "yes"}
        admin.post(TRAIL, chosen)
    admin.post(
        TRAIL,
        {
            "form-TOTAL_FORMS": 1,
            "form-INITIAL_FORMS": 1,
            "form-0-id": entry.pk,
            "form-0-details": "forged",
            "_save": "Save",
        },
    )
    assert everything() == before
    page = admin.get(TRAIL).content.decode()
    assert "delete_selected" not in page
    assert f"{TRAIL}add/" not in page
    page = admin.get(f"{TRAIL}{entry.pk}/change/").content.decode()
    assert "deletelink" not in page
    assert 'name="_save"' not in page


def test_only_the_view_permission_exists_and_it_is_needed(staff, bob):  # noqa: F811
    from django.contrib.auth.models import Permission

    Credential.objects.update(priority=3)
    names = Permission.objects.filter(content_type__model="auditentry")
    assert [name.codename for name in names] == ["view_auditentry"]
    client = staff("view_credential", "change_credential")
    assert client.get(TRAIL).status_code == 403
    assert client.get(f"{TRAIL}{last().pk}/change/").status_code == 403
    assert "Audit trail" not in client.get(f"{CREDENTIALS}{bob.pk}/change/").content.decode()


def test_entries_are_counted_as_such(staff, bob):  # noqa: F811
    for priority in (3, 4):
        Credential.objects.update(priority=priority)
    count = AuditEntry.objects.count()
    assert count > 1
    assert f"{count} audit entries" in staff("view_auditentry").get(TRAIL).content.decode()
    with translation.override("de"):
        assert AuditEntry._meta.verbose_name_plural == "Einträge im Prüfprotokoll"


def test_only_an_empty_trail_says_that_nothing_was_done(staff):  # noqa: F811
    client = staff("view_auditentry")
    assert "Nothing has been done yet." in client.get(TRAIL).text
    CredentialFactory()
    for query in ("action=junk", "action__exact=junk", f"credential_id__exact={uuid4()}", "q=junk"):
        text = client.get(f"{TRAIL}?{query}").text
        assert "Nothing has been done yet." not in text
        assert "No audit entry fits the search and the filters." in text


def test_who_it_was_is_said_in_the_readers_language(staff, bob):  # noqa: F811
    Credential.objects.update(priority=3)
    with translation.override("de"):
        assert "ein Prozess (code)" in staff("view_auditentry").get(TRAIL).content.decode()


def test_whoever_may_view_looks_and_gets_no_link_to_what_is_closed(staff, bob):  # noqa: F811
    Credential.objects.update(priority=3)
    client = staff("view_auditentry")
    page = client.get(TRAIL).content.decode()
    assert "priority: 10 → 3" in page
    assert f"{CREDENTIALS}{bob.pk}" not in page
    assert client.get(f"{TRAIL}{last().pk}/change/").status_code == 200


def test_credential_and_trail_lead_to_each_other(admin, bob):  # noqa: F811
    mary = CredentialFactory(username="mary")
    Credential.objects.update(priority=3)
    page = admin.get(f"{CREDENTIALS}{bob.pk}/change/").content.decode()
    url = f"{TRAIL}?credential_id__exact={bob.pk}"
    assert url in page
    page = admin.get(url).content.decode()
    assert f'href="{CREDENTIALS}{bob.pk}/change/"' in page
    assert str(mary.pk) not in page
    entry = AuditEntry.objects.filter(credential_id=bob.pk).first()
    page = admin.get(f"{TRAIL}{entry.pk}/change/").content.decode()
    assert f'href="{CREDENTIALS}{bob.pk}/change/"' in page
    bob.delete()
    page = admin.get(url).content.decode()
    assert "bob @ Main" in page
    assert f'href="{CREDENTIALS}{bob.pk}' not in page


def test_the_trail_is_searched_and_filtered(admin, bob):  # noqa: F811
    elsewhere = MailServerFactory(name="Elsewhere")
    forget()
    CredentialFactory(tenant__slug="mary", username="mary", server=elsewhere)
    with acting(get_user_model().objects.create_user("alice"), "form"):
        Credential.objects.filter(pk=bob.pk).update(is_active=False)

    def shown(query):
        return len(admin.get(f"{TRAIL}?{query}").context["cl"].result_list)

    assert shown("") == 2
    for text in ("bob", "alice", "Main", "mary", "Elsewhere"):
        assert shown(f"q={text}") == 1, text
    assert shown("q=nobody") == 0
    assert shown("action__exact=disabled") == 1
    assert shown("action__exact=deleted") == 0
    day = timedelta(days=1)
    for time, count in ((timezone.now() - day, 2), (timezone.now() + day, 0)):
        assert shown(urlencode({"when__gte": time.isoformat(sep=" ")})) == count


def test_newest_first_and_in_the_zone_of_whoever_looks(admin, bob):  # noqa: F811
    Credential.objects.update(priority=3)
    Credential.objects.update(priority=4)
    page = admin.get(TRAIL).content.decode()
    assert page.index("3 → 4") < page.index("10 → 3")
    entry = last()
    for zone in ("Asia/Tokyo", "UTC"):
        with timezone.override(zone):
            local = moment(entry.when, seconds=True)
            assert f"{timezone.localtime(entry.when):%H:%M:%S}" in local
            assert local in admin.get(TRAIL).content.decode()
            assert local in admin.get(f"{TRAIL}{entry.pk}/change/").content.decode()


def test_the_list_asks_no_more_for_more_entries(
    admin,  # noqa: F811
    bob,
    django_assert_max_num_queries,
):
    CredentialFactory.create_batch(60)
    with django_assert_max_num_queries(12):
        page = admin.get(TRAIL)
    assert len(page.context["cl"].result_list) == 50


# In code


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: AuditEntry.objects.update(details="forged"),
        lambda: AuditEntry.objects.all().delete(),
        lambda: AuditEntry._base_manager.filter(pk__gt=0).delete(),
        lambda: last().save(),
        lambda: last().delete(),
        lambda: AuditEntry.objects.bulk_update([last()], ["details"]),
    ],
)
def test_entries_are_not_changed_or_deleted_by_mistake(bob, attempt):
    Credential.objects.update(priority=3)
    before = everything()
    with pytest.raises(TypeError, match=r"never changed|not deleted"):
        attempt()
    assert everything() == before


# mailpool_audit


def test_the_command_shows_the_newest_first(bob):
    Credential.objects.update(priority=3)
    with acting(get_user_model().objects.create_user("alice"), "form"):
        Credential.objects.update(is_active=False)
    text, status = run("audit")
    assert status == 0
    head, _line, first, second = text.splitlines()
    assert head.split() == ["Time", "Action", "By", "Way", "Tenant", "About", "Details"]
    assert first.split()[3:] == ["disabled", "alice", "form", "bob", "bob", "@", "Main"]
    assert second.endswith("(a process)  code  bob     bob @ Main  priority: 10 → 3")


def test_the_command_is_for_machines_too(bob):
    assert json.loads(run("audit", "--json")[0]) == []
    Credential.objects.update(priority=3)
    Credential.objects.update(priority=4)
    newest, older = json.loads(run("audit", "--json")[0])
    assert newest["details"] == "priority: 3 → 4"
    assert older == {
        "id": older["id"],
        "when": older["when"],
        "action": "changed",
        "actor": "",
        "actor_key": "",
        "way": "code",
        "credential": str(bob.pk),
        "tenant": "bob",
        "server": "Main",
        "username": "bob",
        "server_key": None,
        "oauth_client_key": None,
        "oauth_client": "",
        "details": "priority: 10 → 3",
    }
    assert timezone.datetime.fromisoformat(older["when"]).tzinfo
    assert len(json.loads(run("audit", "--json", "--limit", 1)[0])) == 1


def test_the_command_chooses(bob):
    server = MailServerFactory()
    forget()
    mary = CredentialFactory(tenant__slug="mary", username="mary", server=server)
    tenant = mary.tenant.pk
    Credential.objects.filter(pk=bob.pk).update(priority=3)

    def count(*args):
        return len(json.loads(run("audit", "--json", *args)[0]))

    assert count() == 2
    assert count("--tenant", "bob") == count("--tenant", "mary") == count("--tenant", tenant) == 1
    assert count("--tenant", "nobody") == 0
    assert count("--credential", bob.pk) == 1
    assert count("--credential", uuid4()) == 0
    now = timezone.now()
    assert count("--since", (now - timedelta(hours=1)).isoformat()) == 2
    assert count("--since", (now + timedelta(hours=1)).isoformat()) == 0
    assert count("--since", "2020-01-31") == 2
    mary.tenant.delete()
    assert count("--tenant", "mary") == 2  # as it was called


def test_the_table_says_that_there_is_more(bob):
    for priority in range(3):
        Credential.objects.update(priority=priority)
    assert "older ones" in run("audit", "--limit", 2)[0]
    assert "older ones" not in run("audit", "--limit", 3)[0]
    forget()
    assert run("audit")[0] == "No entries.\n"


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--tenant", " "], "--tenant is empty"),
        (["--credential", "bob"], "not a credential's key"),
        (["--since", "yesterday"], "no date or time"),
        (["--since", "2026-13-01"], "no date or time"),
        (["--limit", "0"], "1 or more"),
        (["--dry-run"], "goes with --prune-before"),
        (["--prune-before", "2999-01-01"], "in the future"),
        (["--prune-before", "2020-01-01", "--tenant", "bob"], "no filters"),
    ],
)
def test_arguments_that_make_no_sense(db, arguments, answer):
    with pytest.raises(CommandError, match=answer):
        run("audit", *arguments)


def test_pruning_removes_what_is_older_and_says_so(bob):
    for priority in range(3):
        Credential.objects.update(priority=priority)
    old = list(AuditEntry.objects.values_list("pk", flat=True))[1:]
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE mailpool_auditentry SET {connection.ops.quote_name('when')} = "
            f"'2020-05-01 00:00:00' WHERE id <= {max(old)}"
        )
    text, _status = run("audit", "--prune-before", "2021-01-01", "--dry-run")
    assert text.startswith("2 entries from before 2021-01-01 00:00")
    assert len(entries()) == 3
    result = json.loads(run("audit", "--prune-before", "2021-01-01", "--json")[0])
    assert result["removed"] == 2
    kept, pruned = AuditEntry.objects.order_by("pk")
    assert kept.details == "priority: 1 → 2"
    assert (pruned.action, pruned.way) == ("pruned", "mailpool_audit")
    assert pruned.details.startswith("2 entries from before 2021-01-01T00:00:00")
    run("audit", "--prune-before", "2021-01-01")
    assert len(entries()) == 2  # there was nothing to remove, and nothing to say
