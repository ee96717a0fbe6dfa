"""``manage.py demo``: the whole story, in a terminal and in a browser."""

from __future__ import annotations

import fcntl
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.mail import send_mail
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

import mailpool
from demo import web
from demo.hostkeyed import HostKeyedCache
from demo.mailhost import MailHost
from demo.tenants import ACCOUNTS, SITE, store
from mailpool.delivery import session_params
from mailpool.models import Credential, MailServer

TO = "customer@customers.example"


class Command(BaseCommand):
    help = "Show what mailpool does, with a mail host of its own. Works without a network."
    requires_system_checks = []

    def add_arguments(self, parser):
        parser.add_argument("--messages", type=int, default=20, help="Per tenant (20).")
        parser.add_argument(
            "--latency", type=float, default=5.0, help="Milliseconds added to each reply (5)."
        )
        parser.add_argument("--port", type=int, default=8000, help="Of the web pages (8000).")
        parser.add_argument("--no-serve", action="store_true", help="End after the table.")
        parser.add_argument("--save-svg", metavar="PATH", help="Save what is shown as a picture.")

    def handle(self, *args, **options):
        if options["messages"] < 1 or options["latency"] < 0:
            raise CommandError("--messages must be at least 1, --latency at least 0.")
        if not options["no_serve"]:
            _check_port(options["port"])
        if options["save_svg"]:
            _check_file(options["save_svg"])
        console = Console(record=bool(options["save_svg"]), width=_width(), highlight=False)
        with only_one_demo():
            prepare()
            self._run(console, options)

    def _run(self, console, options):
        host = MailHost(ACCOUNTS | SITE, latency=options["latency"] / 1000)
        host.start()
        # Another one at each run, so it can't stand in the settings, as yours does.
        settings.MAILPOOL["TENANT_SERVER_PORTS"] = [host.port]
        try:
            server = store(host.port, host.ca_certificate)
            tell(console, host, server, options["messages"], options["latency"])
            if options["save_svg"]:
                console.save_svg(options["save_svg"], title="manage.py demo")
            if not options["no_serve"]:
                host.forget()
                serve(console, host, options["port"])
        except KeyboardInterrupt:
            console.print("\nBye.")
        finally:
            mailpool.close_connections()
            host.stop()


@contextmanager
def only_one_demo() -> Iterator[None]:
    """Keeps a second demo from taking the database over from one that still serves."""
    with (settings.STATE_DIR / "running").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CommandError(
                "Another demo is running with this database. End it, or give this one a folder of "
                "its own: EXAMPLE_STATE_DIR=/tmp/demo manage.py demo"
            ) from error
        yield


def prepare() -> None:
    """The database, the login for the admin, and those of the tenants' own pages."""
    call_command("migrate", verbosity=0)
    users = get_user_model().objects
    if not users.filter(username="admin").exists():
        users.create_superuser("admin")
    for slug in ACCOUNTS:
        users.get_or_create(username=slug, defaults={"email": f"{slug}@example.com"})
    for user in users.filter(username__in=["admin", *ACCOUNTS]):
        if not user.check_password(settings.ADMIN_PASSWORD):
            user.set_password(settings.ADMIN_PASSWORD)
            user.save()


def send_with_mailpool(number: int) -> None:
    """Ordinary Django mail; the only thing that is not is the line that says whose it is."""
    for slug in ACCOUNTS:
        with mailpool.use_tenant(slug):
            send_mail(f"Message {number}", "Hello!", f"{slug}@example.com", [TO])


def tell(console, host, server, messages, latency) -> None:
    """Three ways to send the same mail, and what is in each Sent folder afterwards."""
    console.print(
        Panel(
            "Bob and Mary have an account each at [bold]the same mail host[/]. "
            f"{messages} message{'s' * (messages != 1)} of each go out in turn: Bob, Mary, Bob … "
            "The host files a message under whoever is [bold]logged in[/] on the connection.",
            title="mailpool",
            border_style="cyan",
        )
    )
    table = Table(expand=True, show_lines=True, header_style="bold")
    table.add_column("")
    table.add_column("Bob's Sent", ratio=1)
    table.add_column("Mary's Sent", ratio=1)
    table.add_column("Connections", justify="right", no_wrap=True)
    table.add_column("Time", justify="right", no_wrap=True)

    def run(title, send):
        host.forget()
        reused = mailpool.stats().reused
        started = time.perf_counter()
        for number in range(messages):
            send(number)
        seconds = time.perf_counter() - started
        reused = mailpool.stats().reused - reused
        connections = f"{host.connections} opened"
        if reused:
            connections += f"\n{reused} reused"
        table.add_row(title, folder(host, "bob"), folder(host, "mary"), connections, ms(seconds))
        return seconds

    maintained = run("[bold]mailpool[/]\n[dim]switch on[/]", send_with_mailpool)

    MailServer.objects.filter(pk=server.pk).update(maintain_connection=False)
    closed = run("[bold]mailpool[/]\n[dim]switch off[/]", send_with_mailpool)
    MailServer.objects.filter(pk=server.pk).update(maintain_connection=True)

    cache = HostKeyedCache()
    params = {
        credential.tenant.slug: session_params(credential)
        for credential in Credential.objects.select_related("server", "tenant")
        if credential.server_id == server.pk and credential.username in ACCOUNTS
    }
    run("[bold]Cache keyed by host[/]\n[dim]the old bug[/]", lambda n: send_wrong(cache, params, n))
    wrong = host.sent["bob"]["mary@example.com"]
    cache.close()

    console.print(table)
    console.print(
        f"With the switch off, mailpool took [bold]{closed / maintained:.1f} times[/] as long as "
        f"with it on\n[dim](each reply of the host is delayed by {latency:g} ms, as by a network "
        "nearby).[/]"
    )
    console.print(
        f"A cache keyed by host alone sent [bold red]{wrong} of Mary's messages on Bob's login[/]; "
        "mailpool sent none.\n"
    )


def send_wrong(cache, params, number) -> None:
    for slug in ACCOUNTS:
        message = EmailMessage()
        message["Subject"] = f"Message {number}"
        message["From"] = f"{slug}@example.com"
        message["To"] = TO
        message.set_content("Hello!")
        cache.send(params[slug], message)


def folder(host, login) -> str:
    """The Sent folder of *login*, by whose mail is in it."""
    lines = []
    for sender, count in sorted(host.sent[login].items()):
        right = sender.startswith(f"{login}@")
        colour = "green" if right else "bold red"
        mark = "" if right else " (wrong!)"
        lines.append(f"[{colour}]{count:>3} from {sender.split('@')[0].title()}{mark}[/]")
    return "\n".join(lines) or "[bold red]empty[/]"


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def serve(console, host, port) -> None:
    """The pages, until Ctrl-C."""
    web.host = host
    url = f"http://127.0.0.1:{port}/"
    with web.listen(port) as server:  # what the panel promises is true when it is read
        console.print(
            Panel(
                f"Write a message:   [bold]{url}[/]\n"
                f"Admin:             [bold]{url}admin/[/]\n"
                f"                   login [bold]admin[/], password "
                f"[bold]{settings.ADMIN_PASSWORD}[/]\n"
                f"Own accounts:      [bold]{url}mail/[/]\n"
                "                   login [bold]bob[/] or [bold]mary[/], the same password;\n"
                f"                   server [bold]localhost[/], port [bold]{host.port}[/], "
                "STARTTLS,\n"
                f"                   [bold]bob[/] with [bold]{ACCOUNTS['bob']}[/]"
                "\n\n[dim]In the admin, try the switch on the mail server's page, “Verify "
                "connection” on a credential, and “Connections” above the list of mail servers. "
                "Ctrl-C ends.[/]",
                border_style="cyan",
            )
        )
        server.serve_forever()  # until Ctrl-C


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise CommandError(
                f"Port {port} can't be used ({error}). Choose another one with --port, or show "
                "the table alone with --no-serve."
            ) from error


def _check_file(path: str) -> None:
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise CommandError(f"--save-svg: {path} can't be written: {error.strerror}.") from error


def _width() -> int:
    return max(80, min(100, Console().width))
