"""Secrets: encrypted, bound to their row, readable with the right key only."""

from __future__ import annotations

import base64
import io
import os

import environ
import pytest
from django.core import serializers
from django.core.exceptions import FieldError
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import F, Value
from django.db.models.signals import pre_save
from django.forms.models import model_to_dict

from mailpool import conf, rotation
from mailpool.exceptions import SecretError
from mailpool.models import Credential, MailServer
from mailpool.vault import Keyring, Sealed, generate_key, get_keyring
from tests.factories import CredentialFactory

OLD, NEW = generate_key(), generate_key()


def stored(credential):
    """What the database holds."""
    with connection.cursor() as cursor:
        pk = Credential._meta.pk.get_db_prep_value(credential.pk, connection)
        cursor.execute("SELECT password FROM mailpool_credential WHERE id = %s", [pk])
        return cursor.fetchone()[0]


def test_opens_in_its_own_place_only():
    keyring = Keyring([NEW])
    sealed = keyring.seal("grüße", "place")
    assert keyring.open(sealed, "place") == "grüße"
    assert sealed != keyring.seal("grüße", "place")  # a nonce of its own
    with pytest.raises(SecretError, match="another row"):
        keyring.open(sealed, "other place")


def test_any_change_is_noticed():
    keyring = Keyring([NEW])
    sealed = keyring.seal("secret", "place")
    version, key, body = sealed.split("$")
    data = bytearray(base64.urlsafe_b64decode(body))
    for position in range(len(data)):
        data[position] ^= 1
        changed = f"{version}${key}${base64.urlsafe_b64encode(bytes(data)).decode()}"
        with pytest.raises(SecretError):
            keyring.open(changed, "place")
        data[position] ^= 1
    for damaged in ("", "plain text", sealed[:-8], f"2${key}${body}", f"1$00000000${body}"):
        with pytest.raises(SecretError):
            keyring.open(damaged, "place")


def test_first_key_encrypts_and_all_decrypt():
    sealed = Keyring([OLD]).seal("secret", "place")
    both = Keyring([NEW, OLD])
    assert both.open(sealed, "place") == "secret"
    assert both.seal("x", "place").key_id == both.newest == Keyring([NEW]).newest
    with pytest.raises(SecretError, match=sealed.key_id):
        Keyring([NEW]).open(sealed, "place")


@pytest.mark.parametrize(
    ("key", "reason"),
    [("short", "bytes instead of 32|not URL-safe"), ("!" * 44, "not URL-safe base64")],
)
def test_unusable_keys_are_named_by_number_and_not_shown(key, reason):
    with pytest.raises(SecretError, match=reason) as caught:
        Keyring([NEW, key])
    assert "number 2" in str(caught.value)
    assert key not in str(caught.value)
    assert NEW not in repr(Keyring([NEW]))


def test_keys_from_the_environment(settings, monkeypatch, tmp_path):
    settings.MAILPOOL = {}
    # What has been read from a file is kept for the life of the process.
    monkeypatch.setattr(environ.FileAwareEnv.ENVIRON, "files_cache", {})
    monkeypatch.setenv("MAILPOOL_ENCRYPTION_KEYS", f" {NEW},{OLD} ")
    assert conf.encryption_keys() == (NEW, OLD)
    file = tmp_path / "keys"
    file.write_text(f"{OLD}\n{NEW}\n")
    monkeypatch.setenv("MAILPOOL_ENCRYPTION_KEYS_FILE", str(file))
    assert conf.encryption_keys() == (OLD, NEW)
    settings.MAILPOOL = {"ENCRYPTION_KEYS": [NEW]}
    assert conf.encryption_keys() == (NEW,)
    assert "MAILPOOL_ENCRYPTION_KEYS" in os.environ


@pytest.mark.django_db
class TestField:
    def test_database_holds_ciphertext_and_the_row_reads_it_back(self):
        credential = CredentialFactory(password="secret")
        assert "secret" not in stored(credential)
        assert stored(credential).startswith(f"1${get_keyring().newest}$")
        again = Credential.objects.get()
        assert again.password == "secret"
        assert isinstance(again.password_ciphertext, Sealed)
        again.refresh_from_db()
        assert again.password == "secret"

    def test_reading_is_what_decrypts(self, settings):
        CredentialFactory(password="secret")
        settings.MAILPOOL = {"ENCRYPTION_KEYS": [NEW]}
        credential = Credential.objects.get()
        credential.priority = 3
        credential.save()
        with pytest.raises(SecretError, match="is not among the configured keys"):
            credential.password  # noqa: B018

    @pytest.mark.parametrize("load", ["only", "defer"])
    def test_deferred(self, load):
        CredentialFactory(password="secret")
        fields = ["username"] if load == "only" else ["password"]
        assert getattr(Credential.objects, load)(*fields).get().password == "secret"

    @pytest.mark.parametrize("value", ["plain", Value("plain"), F("username")])
    def test_update_puts_no_plain_text_into_the_database(self, value):
        credential = CredentialFactory()
        before = stored(credential)
        with pytest.raises((FieldError, TypeError)), transaction.atomic():
            Credential.objects.update(password=value)
        assert stored(credential) == before

    def test_bulk_update_neither(self):
        credential = CredentialFactory()
        before = stored(credential)
        credential.password = "plain"
        with pytest.raises((FieldError, TypeError)), transaction.atomic():
            Credential.objects.bulk_update([credential], ["password"])
        assert stored(credential) == before

    def test_bulk_create_encrypts(self):
        model = CredentialFactory()
        row = Credential(tenant=None, server=model.server, username="x", password="secret")
        Credential.objects.bulk_create([row])
        assert stored(row).startswith("1$")
        assert Credential.objects.get(username="x").password == "secret"
        assert Credential.objects.get(username="x").scope == ""

    @pytest.mark.parametrize(
        "lookup", ["password", "password__contains", "password__isnull", "password__in"]
    )
    def test_rows_can_not_be_filtered_by_it(self, lookup):
        value = ["x"] if lookup.endswith("in") else "x"
        with pytest.raises(FieldError, match="encrypted"):
            list(Credential.objects.filter(**{lookup: value}))

    def test_fixtures_hold_ciphertext_and_load_again(self, tmp_path):
        CredentialFactory(password="secret")
        out = io.StringIO()
        call_command("dumpdata", "mailpool", stdout=out)
        assert "secret" not in out.getvalue()
        Credential.objects.all().delete()
        file = tmp_path / "dump.json"
        file.write_text(out.getvalue())
        call_command("loaddata", str(file), verbosity=0)
        assert Credential.objects.get().password == "secret"

    def test_copied_row_does_not_open(self):
        credential = CredentialFactory(password="secret")
        credential.pk, credential.username = None, "copy"
        credential._state.adding = True
        credential.save()
        with pytest.raises(SecretError, match="another row"):
            Credential.objects.get(username="copy").password  # noqa: B018

    def test_when_it_was_set(self):
        credential = CredentialFactory(password="secret")
        first = Credential.objects.get().password_set_at
        assert first is not None
        credential.password = "another"
        credential.save(update_fields=["password"])
        assert Credential.objects.get().password_set_at > first
        credential.password = ""
        credential.save()
        assert Credential.objects.get().password_set_at is None
        assert Credential.objects.get().password == ""
        assert stored(credential) == ""

    def test_without_a_key_nothing_is_stored(self, settings):
        server = CredentialFactory().server
        settings.MAILPOOL = {"ENCRYPTION_KEYS": []}
        with pytest.raises(SecretError, match="mailpool_generate_key"), transaction.atomic():
            Credential.objects.create(server=server, username="x", password="secret")
        assert Credential.objects.count() == 1

    def test_an_old_instance_puts_no_old_password_back(self, settings):
        """Neither one that somebody has changed, nor one under a key that was rotated out."""
        settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": [OLD]}
        CredentialFactory(password="first")
        held = Credential.objects.get()
        settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": [NEW, OLD]}
        assert rotation.rotate().rewritten == 1
        held.priority = 3
        held.save()
        settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": [NEW]}
        changed = Credential.objects.get()
        assert (changed.priority, changed.password) == (3, "first")
        changed.password = "second"
        changed.save()
        held.priority = 4
        held.save()
        changed.refresh_from_db()
        assert (changed.priority, changed.password) == (4, "second")

    def test_what_is_not_saved_yet_is_dropped_with_the_rest(self):
        credential = CredentialFactory(password="first")
        credential.password = "second"
        assert credential.password == "second"
        credential.refresh_from_db()
        assert credential.password == "first"
        credential.password = ""
        credential.save()
        assert not Credential.objects.get().has_password

    def test_nobody_meets_plain_text_in_the_models_fields(self):
        """Signals, serializers and forms read those, before the row is saved as well."""
        met = []

        def look(sender, instance, **kwargs):
            met.append(repr([instance.__dict__, model_to_dict(instance)]))
            met.append(serializers.serialize("json", [instance]))

        pre_save.connect(look, sender=Credential)
        try:
            credential = CredentialFactory(password="plain-text")
            credential.password = "plain-text-too"
            credential.save()
        finally:
            pre_save.disconnect(look, sender=Credential)
        assert len(met) == 4
        assert "plain-text" not in str(met)

    @pytest.mark.parametrize("way", ["base manager", "relation", "upsert"])
    def test_ways_around_the_field_are_closed(self, way):
        credential = CredentialFactory(password="first")
        other = Credential(
            tenant=credential.tenant,
            server=credential.server,
            username=credential.username,
            password="second",
        )
        with pytest.raises(FieldError):
            if way == "base manager":
                Credential._base_manager.update(password=Value("plain"))
            elif way == "relation":
                credential.tenant.mailpool_credentials.update(password=Value("plain"))
            else:
                Credential.objects.bulk_create(
                    [other],
                    update_conflicts=True,
                    update_fields=["password"],
                    unique_fields=["scope", "server", "username"],
                )
        assert Credential.objects.get().password == "first"


# What a secret was entered for


def sql(table, column, value, pk):
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET {column} = %s WHERE id = %s", [value, pk])


@pytest.mark.django_db
class TestUse:
    @pytest.fixture
    def credential(self):
        return CredentialFactory(password="secret", server__port=587)

    def opens(self, credential):
        fresh = Credential.objects.get(pk=credential.pk)
        try:
            return fresh.password == "secret"
        except SecretError:
            return False

    @pytest.mark.parametrize(
        ("field", "value"),
        [("host", "smtp.attacker.example"), ("port", 2525), ("security", "tls")],
    )
    @pytest.mark.parametrize("how", ["save", "update", "SQL"])
    def test_does_not_open_for_another_server_address(self, credential, field, value, how):
        server = credential.server
        before = getattr(server, field)
        assert self.opens(credential)
        if how == "save":
            setattr(server, field, value)
            server.save()
        elif how == "update":
            MailServer.objects.update(**{field: value})
        else:
            sql("mailpool_mailserver", field, value, key_of(server))
        with pytest.raises(SecretError, match="tenant or host or port or security"):
            Credential.objects.get().password  # noqa: B018
        MailServer.objects.update(**{field: before})
        assert self.opens(credential)

    @pytest.mark.parametrize("column", ["server", "tenant"])
    @pytest.mark.parametrize("how", ["save", "SQL"])
    def test_does_not_open_for_another_server_or_tenant(self, credential, column, how):
        other = CredentialFactory(server__host="other.example.com")
        if how == "save":
            setattr(credential, column, getattr(other, column))
            credential.save()
        else:
            key = key_of(getattr(other, column))
            sql("mailpool_credential", f"{column}_id", key, key_of(credential))
        assert not self.opens(credential)

    def test_a_tenants_secret_is_not_the_sites(self, credential):
        sql("mailpool_credential", "tenant_id", None, key_of(credential))
        assert not self.opens(credential)

    def test_other_changes_leave_it_alone(self, credential):
        MailServer.objects.update(name="renamed", timeout=5, maintain_connection=False)
        credential.username = "renamed"
        credential.save()
        assert self.opens(credential)

    def test_entered_again_it_opens(self, credential):
        MailServer.objects.update(host="moved.example.com")
        credential = Credential.objects.get()
        credential.password = "secret"
        credential.save()
        assert self.opens(credential)

    def test_spelling_of_keys_does_not_matter(self, credential):
        """A key and a port that were given as text are the same that the database gives back."""
        row = Credential(
            tenant_id=str(credential.tenant_id),
            server=MailServer.objects.create(name="text", host="x.example.com", port="587"),
            username="u",
            password="secret",
        )
        row.save()
        assert self.opens(row)


def key_of(row):
    return row._meta.pk.get_db_prep_value(row.pk, connection)
