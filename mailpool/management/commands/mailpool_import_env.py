"""``mailpool_import_env``: an ``EMAIL_URL`` into a server and a credential."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db import router, transaction
from django.db.models import Q

from mailpool.management.base import MailpoolCommand, find_tenant
from mailpool.models import Credential, MailServer, Sender
from mailpool.text import can_be_a_name, can_be_a_password, one_line

DEFAULT_PORTS = {"starttls": 587, "tls": 465, "plain": 25}


class Command(MailpoolCommand):
    help = (
        "Read a mail account from an EMAIL_URL in the environment (or from the file that "
        "EMAIL_URL_FILE names) and store it, encrypted, as a server and a credential; those that "
        "exist already are updated. Examples: smtp+tls://user:password@host:587 for STARTTLS, "
        "smtp+ssl://user:password@host:465 for implicit TLS. Percent-encode special characters."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--variable",
            metavar="NAME",
            default="EMAIL_URL",
            help="Another variable than EMAIL_URL.",
        )
        parser.add_argument(
            "--tenant",
            metavar="SLUG",
            help="Whose account it is (slug or key); without it, the site's.",
        )
        parser.add_argument(
            "--name", metavar="NAME", help="What to call a new server; without it, as its host."
        )
        parser.add_argument(
            "--from",
            dest="default_from",
            metavar="ADDRESS",
            help="The credential's default From.",
        )
        parser.add_argument(
            "--sender",
            action="append",
            default=[],
            metavar="ADDRESS",
            help="An address that it may send as; may be repeated.",
        )
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be done.")
        parser.add_argument("--json", action="store_true", help="The result, for a machine.")

    def handle(self, *args: Any, **options: Any) -> None:
        account = _read(options["variable"])
        tenant = None if options["tenant"] is None else find_tenant(options["tenant"])
        using = router.db_for_write(Credential)
        try:
            with transaction.atomic(using=using):
                server, server_is_new = _store_server(account, tenant, options["name"])
                credential, is_new = _store_credential(account, tenant, server, options)
                if options["dry_run"]:
                    transaction.set_rollback(True, using=using)
        except ValidationError as error:
            raise CommandError(_told(error, options["variable"])) from error
        result = {
            "server": server.name,
            "server_created": server_is_new,
            "username": credential.username,
            "credential": str(credential.pk),
            "credential_created": is_new,
            "dry_run": options["dry_run"],
        }
        if options["json"]:
            self.print_json(result)
            return
        for what, created in (
            (f"mail server {server.name} ({server.host}:{server.port})", server_is_new),
            (f"credential {credential}", is_new),
        ):
            verb = "create" if created else "update"
            done = f"Would {verb}" if options["dry_run"] else f"{verb.capitalize()}d"
            self.stdout.write(one_line(f"{done} {what}."))


def _told(error: ValidationError, variable: str) -> str:
    """What is wrong, and in which option or variable."""
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    options = {"default_from": "--from", "name": "--name"}
    return " ".join(
        f"{options.get(field, variable)}: {' '.join(found)}"
        for field, found in error.message_dict.items()
    )


def _read(variable: str) -> dict[str, Any]:
    """The account in the variable. Errors never repeat the text: it contains the password."""
    env = environ.FileAwareEnv()
    try:
        if not env.str(variable, default=""):
            raise CommandError(f"{variable} is not set, and neither is {variable}_FILE.")
        found = env.email_url(variable)
        port = found.get("EMAIL_PORT")
    except OSError as error:
        raise CommandError(f"{variable}_FILE can't be read: {error.strerror}.") from None
    except (ImproperlyConfigured, ValueError, KeyError, AttributeError):
        found = {}  # refused below: this exception may hold the text, and would come along
    if "smtp" not in str(found.get("EMAIL_BACKEND", "")) or not found.get("EMAIL_HOST"):
        raise _unreadable(variable)
    # A '#' that is not encoded cuts the password off, and the host with it.
    if urlsplit(env.str(variable)).fragment:
        raise _unreadable(variable)
    username = found.get("EMAIL_HOST_USER") or ""
    password = found.get("EMAIL_HOST_PASSWORD") or ""
    names = f"{found['EMAIL_HOST']}{username}"
    if not (can_be_a_name(names) and can_be_a_password(password)):
        raise CommandError(
            f"There is a control character, or one that is not UTF-8, in the host, the username "
            f"or the password of {variable}. Special characters have to be percent-encoded."
        )
    if found.get("EMAIL_USE_SSL"):
        security = "tls"
    else:
        security = "starttls" if found.get("EMAIL_USE_TLS") else "plain"
    return {
        "host": found["EMAIL_HOST"],
        "port": port or DEFAULT_PORTS[security],
        "security": security,
        "username": username,
        "password": password,
    }


def _unreadable(variable: str) -> CommandError:
    return CommandError(
        f"{variable} is not a URL of an SMTP account, such as "
        "smtp+tls://user:password@smtp.example.com:587. Special characters in the password have "
        "to be percent-encoded."
    )


def _store_server(
    account: dict[str, Any], tenant: Any, name: str | None
) -> tuple[MailServer, bool]:
    where = {key: account[key] for key in ("host", "port", "security")}
    usable = Q(tenant=None) | Q(tenant=tenant)  # not one that another tenant named
    server = MailServer.objects.filter(usable, **where).order_by("pk").first()
    if server is not None:
        return server, False
    server = MailServer(name=name or account["host"], **where)
    server.clean_fields()  # before it is looked for
    if MailServer.objects.filter(name=server.name).exists():
        # The same host is known with another port or security.
        server.name = f"{server.name}:{account['port']}"
    server.full_clean()
    server.save()
    return server, True


def _store_credential(
    account: dict[str, Any], tenant: Any, server: MailServer, options: dict[str, Any]
) -> tuple[Credential, bool]:
    credential = Credential.objects.filter(
        tenant=tenant, server=server, username=account["username"]
    ).first()
    is_new = credential is None
    credential = credential or Credential(
        tenant=tenant, server=server, username=account["username"]
    )
    credential.password = account["password"]
    if options["default_from"]:
        credential.default_from = options["default_from"]
    credential.full_clean()
    credential.save()
    for address in options["sender"]:
        sender = Sender(credential=credential, address=address)
        try:
            sender.full_clean(validate_constraints=False)
        except ValidationError as error:
            raise CommandError(f"--sender {address}: {' '.join(error.messages)}") from error
        if not Sender.objects.filter(credential=credential, address=sender.address).exists():
            sender.save()
    credential.check_senders(set(credential.senders.values_list("address", flat=True)))
    return credential, is_new
