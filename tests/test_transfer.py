"""Import and export: what a file says is what is stored, and nothing of a secret is told."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import time
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from mailpool import addresses, relocation
from mailpool.audit import AuditEntry
from mailpool.models import Credential, MailServer, Sender, SiteMarker, Tenant
from mailpool.transfer import files, sealing
from mailpool.transfer.columns import columns
from tests.factories import CredentialFactory, MailServerFactory, SenderFactory, TenantFactory

pytestmark = pytest.mark.django_db

SECRET = "Tr0ub4dor & 3, =really"
HEAD = "tenant,server,host,username,password,senders"


@pytest.fixture
def run(tmp_path):
    """Import a text (or bytes, or rows for JSON); what was said, and the exit status."""

    def run(content, *args, name=None):
        path = tmp_path / (name or ("f.csv" if isinstance(content, (str, bytes)) else "f.json"))
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        out, status = io.StringIO(), 0
        try:
            call_command("mailpool_import", str(path), *map(str, args), stdout=out, stderr=out)
        except SystemExit as end:
            status = end.code
        assert SECRET not in out.getvalue()
        return out.getvalue(), status

    return run


def export(*args):
    out = io.StringIO()
    call_command("mailpool_export", *map(str, args), stdout=out, stderr=out)
    assert SECRET not in out.getvalue()
    return out.getvalue()


def table(*rows, head=HEAD):
    out = io.StringIO()
    csv.writer(out).writerows([head.split(","), *rows])
    return out.getvalue()


BOB = ("bob", "Main", "smtp.example.com", "bob", SECRET, "@bob.example bob@example.com")
MARY = ("mary", "Main", "", "mary", SECRET, "")


def everything():
    """All that an import could write, but times and keys."""
    skip = {"id", "when"}
    return [
        sorted(
            str({name: value for name, value in row.items() if name not in skip})
            for row in model.objects.values()
        )
        for model in (Tenant, MailServer, Credential, Sender, AuditEntry)
    ]


# What is stored


def test_a_file_becomes_tenants_servers_accounts_and_senders(run):
    text, status = run(table(BOB, MARY))
    assert status == 0
    assert "Created: 2 tenants, 1 server, 2 accounts" in text
    bob = Credential.objects.get(tenant__slug="bob")
    assert (bob.password, bob.server.host, bob.server.name) == (SECRET, "smtp.example.com", "Main")
    assert bob.password_set_at is not None
    assert bob.sender_addresses == {"@bob.example", "bob@example.com"}
    assert {row.scope for row in bob.senders.all()} == {str(bob.tenant_id)}
    assert Credential.objects.get(tenant__slug="mary").server == bob.server


def test_a_second_import_changes_nothing_and_writes_nothing(run):
    run(table(BOB, MARY))
    before = everything()
    with CaptureQueriesContext(
        connection,
    ) as queries:
        text, status = run(table(BOB, MARY))
    assert status == 0
    assert "Created: nothing; changed: nothing; as they were: 5" in text
    assert everything() == before
    verbs = {query["sql"].split()[0] for query in queries}
    assert verbs <= {"SELECT", "BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK"}


def test_what_exists_is_changed_and_what_is_not_said_stays(run):
    run(table(BOB))
    old = Credential.objects.get()
    head = "tenant,server,username,password,priority,max_messages,tenant_name,senders"
    row = ("bob", "Main", "bob", "new " + SECRET, "3", "", "Bob's", "bob@example.com b@bob.test")
    text, status = run(table(row, head=head), "-v2")
    assert status == 0
    new = Credential.objects.get()
    assert (new.pk, new.password, new.priority) == (old.pk, "new " + SECRET, 3)
    assert new.sender_addresses == {"@bob.example", "bob@example.com", "b@bob.test"}
    assert new.tenant.name == "Bob's"
    assert "tenant_name: bob → Bob's" in text
    assert "priority: 10 → 3" in text
    assert "password: changed" in text


def test_a_dry_run_tells_all_and_writes_nothing(run):
    run(table(BOB))
    before = everything()
    text, status = run(table((*BOB[:4], "another " + SECRET, BOB[5]), MARY), "--dry-run")
    assert status == 0
    assert everything() == before
    assert "+ tenant mary" in text
    assert "~ account bob of bob at Main\n    password: changed" in text
    assert "password: set" in text


def test_only_new_ones_or_only_those_that_exist(run):
    run(table(BOB))
    changed = (*BOB[:4], "another", BOB[5])
    text, status = run(table(changed, MARY), "--create-only")
    assert (status, "Line 2, username: This exists" in text) == (1, True)
    text, status = run(table(changed, MARY), "--update-only")
    assert (status, "Line 3, username: This would be new" in text) == (1, True)
    assert Credential.objects.get().password == SECRET
    assert run(table(changed), "--update-only")[1] == 0
    assert run(table(changed, MARY), "--create-only")[1] == 0


def test_a_preset_fills_in_a_new_server_and_is_told_apart_from_another_host(run):
    head = "tenant,preset,server,username,password"
    assert run(table(("bob", "gmail", "", "bob", SECRET), head=head))[1] == 0
    server = MailServer.objects.get()
    assert (server.host, server.port) == ("smtp.gmail.com", 587)
    MailServerFactory(name="Elsewhere", host="smtp.evil.test")
    CredentialFactory(server=MailServer.objects.get(name="Elsewhere"))
    text, status = run(table(("mary", "gmail", "Elsewhere", "mary", SECRET), head=head))
    assert status == 1
    assert "Line 2, host: Passwords are stored" in text
    assert not Credential.objects.filter(username="mary").exists()


def test_an_account_of_the_site_has_to_be_said(run):
    text, status = run(table(("", *BOB[1:])))
    assert status == 1
    assert "Line 2, tenant: Write the tenant's slug, or (site)" in text
    assert run(table(("(site)", *BOB[1:])))[1] == 0
    assert Credential.objects.get().tenant is None


def test_json_has_values_of_their_own_kind_and_empties_what_is_said_to_be_empty(run):
    row = dict(zip(HEAD.split(","), BOB, strict=True), senders=["bob@example.com"], active=False)
    row |= {"priority": 2, "default_from": "bob@example.com", "timeout": None}
    text, status = run([row])
    assert (text.count("Created: 1 tenant, 1 server, 1 account"), status) == (1, 0)
    credential = Credential.objects.get()
    assert (credential.is_active, credential.priority) == (False, 2)
    assert run([row | {"default_from": ""}])[1] == 0
    assert Credential.objects.get().default_from == ""


def test_it_is_all_in_the_audit_under_the_commands_name(run):
    run(table(BOB))
    entries = AuditEntry.objects.filter(way="mailpool_import")
    assert set(entries.values_list("action", flat=True)) == {"created", "changed"}
    assert entries.filter(details__contains="sender added: @bob.example").exists()
    run(table((*BOB[:4], "another", BOB[5])))
    assert AuditEntry.objects.filter(action="password_set", way="mailpool_import").count() == 1
    assert not AuditEntry.objects.filter(details__contains=SECRET).exists()


def test_the_example_of_the_documentation(run):
    page = (Path(__file__).parent.parent / "docs" / "import-export.md").read_text()
    example = page.partition("$ cat accounts.csv\n")[2]
    content, dry_run, rest = re.split(r"\$ python manage.py mailpool_import.*\n", example)[:3]
    assert run(content, "--dry-run")[0] == dry_run
    assert run(content)[0] == rest.partition("$ ")[0]
    assert not [name for name in columns() if f"`{name}`" not in page]


# What is refused


def test_every_error_is_in_one_report_and_nothing_is_imported(run):
    head = HEAD + ",port,security,default_from,active,priority"
    rows = [
        (*BOB, "", "", "", "", ""),
        ("B ad", "Main", "", "x", SECRET, "", "", "", "", "", ""),
        ("c", "Other", "", "c", SECRET, "", "", "", "", "", ""),
        ("d", "Main", "", "d", "", "", "", "", "", "", ""),
        ("e", "Main", "", "e", SECRET, "e@", "abc", "ssl", "e@@", "maybe", "-1"),
        (*BOB, "", "", "", "", ""),
        ("f", "Main", "", "", SECRET, "bob@x.test bob@x.test b@b@x.test", "", "", "", "", ""),
        ("g", "Main", "smtp.other.test", "g", SECRET, "", "", "", "", "", ""),
    ]
    text, status = run(table(*rows, head=head))
    assert status == 1
    wanted = (
        "Line 3, tenant: Enter a valid",
        "Line 4, server: There is no mail server of this name.",
        "Line 5, password: Enter the password",
        "Line 6, senders: ",
        "Line 6, port: Write a whole number.",
        "Line 6, security: “ssl” is not known. Write one of: starttls, tls, plain.",
        "Line 6, default_from: ",
        "Line 6, active: Write yes or no.",
        "Line 6, priority: Write a whole number.",
        "Line 7: Line 2 is about the same account.",
        "Line 8, username: A password needs a username.",
        "Line 8, senders: bob@x.test is there twice.",
        "Line 8, senders: b@b@x.test: Enter a full address such as",
        "Line 9, host: Line 2 says something else.",
    )
    assert [start for start in wanted if start not in text] == []
    assert "14 problems. Nothing was imported." in text
    assert not Tenant.objects.exists()
    assert not AuditEntry.objects.exists()


def test_keep_going_takes_the_rows_that_are_right_and_those_as_a_whole(run):
    wrong = ("carl", "Main", "", "carl", SECRET, "nonsense")
    lost = ("dora", "No such", "", "dora", SECRET, "")
    text, status = run(table(BOB, wrong, lost, MARY), "--keep-going")
    assert status == 1
    assert "Line 3, senders" in text
    assert "Line 4, server" in text
    assert "The rest was left out." in text
    assert set(Tenant.objects.values_list("slug", flat=True)) == {"bob", "mary"}
    assert set(Credential.objects.values_list("username", flat=True)) == {"bob", "mary"}


def test_a_wrong_server_is_reported_once_and_holds_up_its_accounts(run):
    rows = [(f"t{n}", "Main", "", f"t{n}", SECRET, "") for n in range(3)]
    text, _ = run(table(("t9", "Main", "http://no", "t9", SECRET, ""), *rows), "--keep-going")
    assert text.count("Enter the host name alone") == 1
    assert "3 accounts more are right themselves" in text
    assert not Credential.objects.exists()


def test_a_stored_password_is_not_presented_to_another_host(run):
    run(table(BOB))
    server = MailServer.objects.get()
    before = everything()
    for host, port, security in (("smtp.evil.test", "", ""), ("", "2525", ""), ("", "", "tls")):
        head = "record,server,host,port,security"
        text, status = run(table(("server", "Main", host, port, security), head=head))
        assert (status, "an import never presents them anywhere else" in text) == (1, True)
        assert "Change host, port or security" in text
    assert everything() == before
    assert relocation.at_stake(server).secrets == 1
    Credential.objects.all().delete()
    assert run(table(("server", "Main", "smtp.new.test"), head="record,server,host"))[1] == 0
    assert MailServer.objects.get().host == "smtp.new.test"


def test_the_same_rules_as_in_the_admin(run, settings):
    head = "record,tenant,server,host,port,security,server_tenant,username,password"
    plain = ("", "bob", "Clear", "smtp.example.com", "25", "plain", "", "bob", SECRET)
    inside = ("server", "", "Inside", "10.0.0.1", "587", "", "bob", "", "")
    others = ("", "mary", "Bobs", "smtp.bob.test", "", "", "bob", "mary", SECRET)
    text, status = run(table(plain, inside, others, head=head))
    assert status == 1
    assert "Line 2: The password would travel to “Clear” in clear text." in text
    assert "Line 3, server: " in text
    assert "Line 4: The mail server “Bobs” belongs to another tenant." in text


def test_an_existing_server_keeps_its_owner_and_an_account_its_kind_of_login(run):
    mary = TenantFactory(slug="mary")
    MailServerFactory(name="Marys", tenant=mary, host="smtp.mary.test")
    head = "record,server,server_tenant"
    text, _ = run(table(("server", "Marys", "bob"), head=head))
    assert "Line 2, server_tenant: The server is not this tenant's" in text
    run(table(BOB))
    row = ("bob", "Main", "bob", "client_credentials")
    text, _ = run(table(row, head="tenant,server,username,kind"))
    assert "Line 2, kind: It is password there" in text


def test_a_sender_that_another_account_of_the_tenant_has(run):
    run(table(BOB))
    text, status = run(table(("bob", "Main", "", "second", SECRET, "Bob@Example.com")))
    assert status == 1
    assert "Line 2, senders: Another account of this tenant has bob@example.com" in text
    # Another tenant may have it.
    assert run(table(("mary", "Main", "", "mary", SECRET, "bob@example.com")))[1] == 0


def test_a_sender_that_needs_quotes_goes_in_and_out(run):
    senders = '"bob 1"@example.com bob@example.com'
    assert run(table(("bob", "Main", "smtp.example.com", "bob", SECRET, senders)))[1] == 0
    stored = {'"bob 1"@example.com', "bob@example.com"}
    assert set(Sender.objects.values_list("address", flat=True)) == stored
    assert "as they were: 3" in run(export())[0]


def test_another_sites_database_is_left_alone(run, settings):
    SiteMarker.objects.update_or_create(pk=1, defaults={"name": "production"})
    settings.MAILPOOL = {**settings.MAILPOOL, "SITE": "staging"}
    with pytest.raises(CommandError, match="belongs to the site"):
        run(table(BOB))
    with pytest.raises(CommandError, match="belongs to the site"):
        export()
    assert not Tenant.objects.exists()


def test_what_somebody_else_stores_meanwhile_is_reported_by_line(run, monkeypatch):
    from mailpool import transfer

    def late(*args, **kwargs):
        found = make_plan(*args, **kwargs)
        TenantFactory(slug="bob")
        return found

    make_plan = transfer.make_plan
    monkeypatch.setattr(transfer, "make_plan", late)
    text, status = run(table(MARY, (*MARY[:2], "smtp.example.com", "m2", SECRET, ""), BOB))
    assert (status, "Line 4: The database refuses this." in text) == (1, True)
    assert list(Tenant.objects.values_list("slug", flat=True)) == ["bob"]
    Tenant.objects.all().delete()
    text, status = run(
        table(MARY, (*MARY[:2], "smtp.example.com", "m2", SECRET, ""), BOB), "--keep-going"
    )
    assert (status, "Line 4: The database refuses this." in text) == (1, True)
    assert set(Credential.objects.values_list("username", flat=True)) == {"mary", "m2"}


# Files


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (table(BOB).encode("utf-16"), "Line 1: The file is in UTF-16"),
        (table(BOB).encode() + b"b\xfcro,Main,,x,y,\n", "Line 3: This is not UTF-8"),
        ("tenant,sever\nb,m\n", "Line 1, sever: There is no such column. Did you mean server?"),
        ("tenant,tenant\nb,b\n", "Line 1, tenant: There are two columns"),
        (HEAD + "\nbob,Main,x\n", "Line 2: This row has another number of cells (3)"),
        (HEAD + '\nbob,"Main\nx,y,z\n', "Line 2: From here on the quotes do not match"),
        (HEAD + "\nbob,Ma\0in,x,x,x,\n", "Line 2: There is a NUL"),
        ("", "Line 1: There are no rows"),
        (HEAD + "\n", "Line 1: There are no rows"),
    ],
)  # fmt: skip
def test_files_that_are_none(run, content, told):
    text, status = run(content)
    assert status == 1
    assert told in text
    assert "Nothing was imported" in text
    assert not Tenant.objects.exists()
    # As none of it was compared, there is nothing to say of what would be done.
    text, status = run(content, "--dry-run")
    assert (status, told in text) == (1, True)
    assert ("Once that is corrected" in text) == ("number of cells" in told)
    assert json.loads(run(content, "--dry-run", "--json")[0])["problems"]


def test_columns_are_listed_by_the_command_and_not_in_each_problem(run):
    text, _ = run("tenant,server,sever,nonsense\nb,m,x,x\n")
    assert "Line 1, sever: There is no such column. Did you mean server? All columns are" in text
    assert "Line 1, nonsense: There is no such column. All columns are listed by" in text
    assert "bounce_address" not in text
    out = io.StringIO()
    call_command("mailpool_import", "--columns", stdout=out)
    assert [line.split()[0] for line in out.getvalue().splitlines()[2:]] == list(columns())
    assert re.search(r"^security +server +starttls, tls, plain$", out.getvalue(), re.MULTILINE)
    with pytest.raises(CommandError, match="Give the file"):
        call_command("mailpool_import")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"tenant": "bob"}', "Line 1: The file has to begin with ["),
        ('{"a":1', "Line 1: The file has to begin with ["),
        ('[{"a":1', "Line 1: The file ends before its list"),
        ('[{"tenant": "bob"},\n{"tenant": "bo', "Line 2: The file ends before its list"),
        ('[{"tenant": "bob"}', "Line 1: The file ends before its list"),
        ('[{"tenant": "bob"},\n', "Line 2: The file ends before its list"),
        ("[", "Line 1: The file ends before its list"),
        ('[{"tenant": "bob"},\n{"tenant" "bob"}]', "Line 2: This is not JSON"),
        ('[{"tenant": "bob"}\n,\n{"tenat": "bob"}]', "Line 3, tenat: There is no such column"),
        ('[{"tenant": "bob", "tenant": "mary"}]', "Line 1, tenant: The row says this twice"),
        ('[{"tenant": "bob"}, 3]', "Row 2: Each row is an object"),
        ('[{"tenant": "bob"}] x', "Line 1: There is something after"),
        ('[{"tenant": {"a": 1}, "server": true}]', "Line 1, tenant: Write it as text"),
        ("[" * 100_000, "Line 1: This is not JSON"),
        ('[{"tenant": "a", "password": "\\ud800"}]', "Line 1, password: It has a character"),
        ('[{"server": "a", "ca_certificate": "\\ud800"}]', "ca_certificate: It has a character"),
        ('[{"server": "a", "ca_certificate": "\\u0000"}]', "ca_certificate: It has a character"),
        ('[{"tenant": NaN}]', "Line 1, tenant: Write it as text"),
        ('[{"tenant": 1e5}]', "Line 1, tenant: Write it as text"),
        ('[{"port": NaN}]', "Line 1, port: Write a whole number"),
        ('[{"port": %s}]' % ("9" * 4000), "Line 1, port: Write a whole number"),
        ('[{"port": %s}]' % ("9" * 5000), "Line 1: This is not JSON"),
    ],
)
def test_json_that_is_none(run, content, told):
    text, status = run(content, name="f.json")
    assert (status, told in text) == (1, True)


@pytest.mark.parametrize("ill", ["\ud800", "\x1b[2J", "x" * 1_000_000], ids=ascii)
def test_a_report_can_be_read_whatever_is_in_the_file(run, ill):
    """Nothing that no terminal and no page can show, and no megabyte, is repeated."""
    account = {"tenant": "bob", "server": "Main", "host": "smtp.example.com", "username": "bob"}
    for column in ("senders", "security", "preset", "record", f"x{ill}", "server_tenant"):
        text, status = run([account | {column: ill}])
        assert status == 1
        assert text.encode().replace(b"\n", b"").decode().isprintable()
        assert len(text) < 1000


def test_a_megabyte_is_no_address(run):
    """Python's parser would take hours to say so."""
    account = dict(zip(HEAD.split(","), BOB, strict=True))
    for ill in ("a@" + "b." * 500_000, '"a' * 300_000):
        text, status = run([account | {"senders": ill}])
        assert (status, text.count("Enter a full address")) == (1, 1)


def test_rows_on_one_line_are_told_apart(run):
    row = {"server": "Main", "host": "smtp.example.com", "username": "a", "password": SECRET}
    rows = [row | {"tenant": "bob"}, row | {"tenant": "b b"}, row | {"tenant": "bob"}]
    text, _ = run(rows, "--keep-going")
    assert "Row 2, tenant: Enter a valid" in text
    assert "Row 3: Row 1 is about the same account." in text
    assert Credential.objects.get().tenant.slug == "bob"


def test_a_line_is_where_the_row_begins(run):
    pem = '"not\na\ncertificate"'
    content = f"record,server,host,ca_certificate\n\nserver,A,a.test,{pem}\n;\nserver,B,b.test,x\n"
    text, _ = run(content)
    assert "Line 3, ca_certificate" in text
    assert "Line 6: This row has another number of cells (1) than the first row (4)." in text
    assert "Line 7, ca_certificate" in text


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\N{ZERO WIDTH NO-BREAK SPACE}"])
def test_separators_and_a_byte_order_mark(run, separator, mark):
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(
        [("Tenant", "tenant_name", "server", "host", "username", "password"),
         ("bob", "Büro, Bob; & Co", "Main", "smtp.example.com", "bob", SECRET),
         ("", "", "", "", "", "")]
    )  # fmt: skip
    assert run(mark + out.getvalue())[1] == 0
    assert Tenant.objects.get().name == "Büro, Bob; & Co"
    assert Credential.objects.get().password == SECRET


def test_a_file_has_its_limits(run, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROWS", 1)
    text, status = run(table(BOB, MARY))
    assert (status, "Line 3: There are more than 1 rows" in text) == (1, True)
    text, status = run(table((*BOB[:5], "x" * 200_000)))
    assert (status, "Line 2: From here on the quotes do not match, or a cell" in text) == (1, True)


# Exports


def stock():
    server = MailServerFactory(name="=HYPERLINK(1)", host="smtp.example.com", max_messages=7)
    bob = CredentialFactory(
        tenant__slug="bob", tenant__name="'@SUM(A1)", server=server, username="+bob\t".strip(),
        password=SECRET, default_from="Bob <bob@example.com>",
    )  # fmt: skip
    SenderFactory(credential=bob, address="@bob.example")
    SenderFactory(credential=bob, address="bob@example.com")
    CredentialFactory(tenant=None, server=server, username="-site", password=SECRET)
    owned = MailServerFactory(
        name="Marys", host="smtp.mary.test", tenant=TenantFactory(slug="mary")
    )
    CredentialFactory(tenant=owned.tenant, server=owned, username="'mary", is_active=False)


@pytest.mark.parametrize("format", ["csv", "json"])
def test_an_export_comes_back_as_it_was(run, format, tmp_path):
    stock()
    path = tmp_path / f"out.{format}"
    export("--output", path)
    assert SECRET not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    before = everything()
    text, status = run(path.read_bytes(), name=f"f.{format}")
    assert (text, status) == (
        "Created: nothing; changed: nothing; as they were: 7.\n", 0
    )  # fmt: skip
    assert everything() == before
    with pytest.raises(CommandError, match="exists already"):
        export("--output", path)


def test_no_cell_of_an_export_is_a_formula():
    stock()
    text = export()
    rows = list(csv.reader(io.StringIO(text)))
    cells = [cell for row in rows for cell in row]
    assert "'=HYPERLINK(1)" in cells
    assert "''@SUM(A1)" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]


def test_a_password_that_looks_like_a_formula_or_an_escape_is_itself(run):
    for password in ("=1+1", "'=1", " blanks ", "@x", "''"):
        assert run(table((*BOB[:4], password, "")))[1] == 0
        assert Credential.objects.get().password == password


def test_a_password_that_is_too_long_is_refused_on_its_line(run):
    said, status = run(table(BOB, (*MARY[:4], "x" * 100_000, "")))
    assert status == 1
    assert "Line 3, password: This is too long: it may have up to 4096 characters." in said
    assert "xxx" not in said
    assert not Credential.objects.exists()


def test_an_account_with_thousands_of_senders(run, monkeypatch):
    """Each is looked at once, and not at all by the parser for odd addresses."""
    monkeypatch.setattr(addresses, "_parse_any", None)
    made = counted(monkeypatch, Sender)
    senders = [f"u{number}@bob.example" for number in range(3000)]
    row = {**dict(zip(HEAD.split(","), BOB, strict=True)), "senders": senders}
    with CaptureQueriesContext(connection) as captured:
        assert run([row])[1] == 0
    assert Sender.objects.count() == 3000
    assert len(captured) < 150
    made.clear()
    said, status = run([row])
    assert status == 0
    assert "as they were: 3" in said
    assert len(made) == 3000  # as they are stored, and none beside them


def counted(monkeypatch, model):
    made, init = [], model.__init__

    def counting(self, *args, **kwargs):
        made.append(1)
        init(self, *args, **kwargs)

    monkeypatch.setattr(model, "__init__", counting)
    return made


def test_an_export_is_in_the_audit():
    stock()
    export()
    entry = AuditEntry.objects.get(action="exported")
    assert entry.details == "2 tenants, 2 mail servers, 3 credentials, without secrets"
    assert entry.way == "mailpool_export"


@pytest.fixture
def pair(tmp_path):
    path = tmp_path / "transfer.key"
    call_command("mailpool_generate_key", "--transfer", str(path), stdout=io.StringIO())
    return path, tmp_path / "transfer.key.pub"


@pytest.mark.parametrize("format", ["csv", "json"])
def test_sealed_secrets_open_at_another_site_with_the_private_key(run, pair, format, settings):
    private, public = pair
    stock()
    text = export("--with-secrets", "--public-key", public, "--format", format)
    assert AuditEntry.objects.filter(action="exported", credential_id__isnull=False).count() == 3
    for model in (Credential, MailServer, Tenant):
        model.objects.all().delete()
    keys = ["YW5vdGhlciBzaXRlJ3Mga2V5LCBub3QgYSBzZWNyZXQ="]
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": keys}
    said, status = run(text, name=f"f.{format}")
    assert (status, "give the private key that opens it" in said) == (1, True)
    assert run(text, "--private-key", private, name=f"f.{format}")[1] == 0
    assert {row.username for row in Credential.objects.filter() if row.password == SECRET} == {
        "+bob", "-site"
    }  # fmt: skip
    assert run(text, "--private-key", private, name=f"f.{format}")[0].startswith(
        "Created: nothing; changed: nothing"
    )


def test_a_sealed_secret_opens_for_its_own_row_and_host_only(run, pair):
    private, public = pair
    MailServerFactory(name="Main", host="smtp.example.com")
    CredentialFactory(
        tenant__slug="bob", server=MailServer.objects.get(), username="bob", password=SECRET
    )
    rows = json.loads(export("--with-secrets", "--public-key", public, "--format", "json"))
    server, account = rows[1], rows[2]
    Credential.objects.all().delete()
    MailServer.objects.all().delete()
    edits = [
        [server | {"host": "smtp.evil.test"}, account],
        [server | {"port": 2525}, account],
        [server | {"security": "tls"}, account],
        [server, account | {"tenant": "mary"}],
        [server, account | {"username": "mary"}],
        [server | {"server": "Other"}, account | {"server": "Other"}],
        [server, account | {"sealed_password": account["sealed_password"][:-6] + "AAAAA="}],
        [server, account | {"sealed_password": "1$x"}],
    ]
    for edited in edits:
        said, status = run(edited, "--private-key", private)
        assert (status, "sealed_password: It does not open" in said) == (1, True)
    assert not Credential.objects.exists()
    other = private.with_name("other.key")
    sealing.make_pair(str(other))
    assert "It does not open" in run([server, account], "--private-key", other)[0]
    assert run([server, account], "--private-key", private)[1] == 0


def test_a_sealed_secret_does_not_tell_its_length(pair):
    key = sealing.read_public_key(str(pair[1]))
    assert len({len(sealing.seal("x" * n, key, ["a"])) for n in (0, 1, 40, 63)}) == 1
    assert sealing.seal("x", key, ["a"]) != sealing.seal("x", key, ["a"])


def test_the_private_key_is_for_its_owner_alone(pair, run):
    private, public = pair
    assert private.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in public.read_text()
    with pytest.raises(CommandError, match="exists already"):
        call_command("mailpool_generate_key", "--transfer", str(private))
    os.chmod(private, 0o640)
    with pytest.raises(CommandError, match="can be read by others"):
        run(table(BOB), "--private-key", private)
    os.chmod(public, 0o600)
    with pytest.raises(CommandError, match="no private key for transfers"):
        run(table(BOB), "--private-key", public)
    with pytest.raises(CommandError, match="no public key for transfers"):
        export("--with-secrets", "--public-key", private)
    with pytest.raises(CommandError, match="go together"):
        export("--with-secrets")


def test_what_does_not_open_is_left_out_of_the_export_and_told(pair):
    credential = CredentialFactory(password=SECRET)
    MailServer.objects.filter(pk=credential.server_id).update(host="elsewhere.test")
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command(
            "mailpool_export", "--with-secrets", "--public-key", str(pair[1]),
            stdout=out, stderr=out,
        )  # fmt: skip
    assert f"does not open: mailpool.credential.password:{credential.pk}" in out.getvalue()
    assert "sealed_password" not in out.getvalue()


# Many


def many(count):
    head = "tenant,tenant_name,server,host,username,password,senders"
    rows = [
        (f"t{n}", f"Tenant {n}", f"S{n % 3}", f"s{n % 3}.example.com", f"u{n}@t{n}.example",
         f"{SECRET} {n}", f"@t{n}.example")
        for n in range(count)
    ]  # fmt: skip
    return table(*rows, head=head)


def test_many_rows_take_few_queries(run):
    with CaptureQueriesContext(connection) as queries:
        assert run(many(200))[1] == 0
    assert Credential.objects.count() == Sender.objects.count() == 200
    assert {row.password for row in Credential.objects.all()} == {
        f"{SECRET} {n}" for n in range(200)
    }
    assert len(queries) < 80
    with CaptureQueriesContext(connection) as queries:
        assert run(many(200))[1] == 0
    assert len(queries) < 15


def test_many_tenants_are_imported(run, capsys):
    count = int(os.environ.get("IMPORT_TENANTS", "1000"))
    content = many(count)
    began = time.perf_counter()
    assert run(content)[1] == 0
    seconds = time.perf_counter() - began
    assert Credential.objects.count() == Sender.objects.count() == count
    began = time.perf_counter()
    assert f"as they were: {2 * count + 3}" in run(content)[0]
    again = time.perf_counter() - began
    with capsys.disabled():
        print(f"\n{count} tenants: {seconds:.1f} s, once more {again:.1f} s")
