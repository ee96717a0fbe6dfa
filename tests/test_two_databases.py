"""A project whose router keeps mailpool in a database of its own."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests import processes
from tests.smtpd import PASSWORD, MailHost

CHILD = """
import json, os, sys
from datetime import timedelta
import django
from django.conf import settings
folder, port, password = sys.argv[1:]


class Apart:
    def _db(self, app, model):
        return "mail" if app == "mailpool" else "default"

    def db_for_read(self, model, **hints):
        return self._db(model._meta.app_label, model._meta.model_name)

    db_for_write = db_for_read

    def allow_relation(self, *args, **hints):
        return True

    def allow_migrate(self, db, app, model_name=None, **hints):
        return db == self._db(app, model_name)


from tests import settings as base
values = {name: getattr(base, name) for name in dir(base) if name.isupper()}
values["DATABASES"] = {
    name: {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.path.join(folder, name),
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    }
    for name in ("default", "mail")
}
values["DATABASE_ROUTERS"] = ["__main__.Apart"]
values["MAILPOOL"] = {**values["MAILPOOL"], "RECORDS": "subjects"}
settings.configure(**values)
django.setup()

from django.contrib.auth import get_user_model
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from mailpool import recording, summaries
from mailpool.backends import EmailBackend
from mailpool.models import Credential, DeliveryRecord, MailServer, Sender, Tenant

call_command("migrate", verbosity=0)
call_command("migrate", database="mail", verbosity=0)
call_command("check", "--database", "default", "--database", "mail")
os.environ["EMAIL_URL"] = f"smtp://bob:{password}@localhost:{port}"
call_command("mailpool_import_env", "--dry-run", stdout=sys.stderr)
told = {"after a dry run": MailServer.objects.count()}
bob = Tenant.objects.create(slug="bob")
server = MailServer.objects.create(
    name="s", host="localhost", port=int(port), security="plain", maintain_connection=False
)
Credential.objects.create(tenant=bob, server=server, username="bob", password=password)
message = EmailMessage("s", "t", "bob@example.com", ["a@b.example", "c@d.example"])
message.tenant = "bob"
told["sent"] = EmailBackend().send_messages([message])
told["records"] = DeliveryRecord.objects.using("mail").count()
client = Client()
client.force_login(get_user_model().objects.create_superuser("root"))
told["maintain"] = client.post(
    "/admin/mailpool/mailserver/", {"action": "maintain", "_selected_action": [str(server.pk)]}
).status_code
server.refresh_from_db()
told["maintained"] = server.maintain_connection
record = DeliveryRecord.objects.get()
for url in (
    "", "mailserver/", "credential/", "tenant/", "auditentry/", "deliveryrecord/",
    "mailserver/connections/", f"deliveryrecord/{record.pk}/change/",
    f"deliveryrecord/?tenant={bob.pk}&server={server.pk}", "deliveryrecord/?q=c@d.example",
    f"mailserver/{server.pk}/change/",
):
    told[url] = client.get(f"/admin/mailpool/{url}").status_code
found = client.get("/admin/mailpool/deliveryrecord/?q=c@d.example").content.decode()
told["found"] = found.count(f"deliveryrecord/{record.pk}/change/")
call_command("mailpool_status", stdout=sys.stderr)
call_command("mailpool_rotate_keys", stdout=sys.stderr)
told["pruned"] = recording.prune(timezone.now() + timedelta(minutes=1))
told["summed up"] = summaries.sum_up()
print(json.dumps(told))
"""


@pytest.mark.django_db
def test_mailpool_has_a_database_of_its_own(tmp_path):
    with MailHost(security="plain") as host:
        child = processes.start(
            CHILD.replace("sys.argv[1:]", repr([str(tmp_path), str(host.port), PASSWORD])),
            stdout=subprocess.PIPE,
        )
        out, _ = child.communicate(timeout=120)
    told = json.loads(out.splitlines()[-1])
    assert (told.pop("after a dry run"), told.pop("sent"), told.pop("records")) == (0, 1, 1)
    assert (told.pop("maintain"), told.pop("maintained")) == (302, True)
    assert (told.pop("found"), told.pop("pruned"), told.pop("summed up")) == (1, 1, 0)
    assert set(told.values()) == {200}, told
