"""A private Exim, in a folder of its own, on a port of its own.

Like the Postfix beside it, it refuses a sender that does not belong to the login. Debian does not
install two mail servers side by side, so its binary may also come out of an unpacked package:
``MAILPOOL_EXIM`` is its path.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
from pathlib import Path

from tests.integration.postfix import free_port, wait_for_greeting
from tests.smtpd import PASSWORD, Authority

BINARY = os.environ.get("MAILPOOL_EXIM", "/usr/sbin/exim4")
USER = "Debian-exim"  # compiled into Debian's binary

CONFIG = """
spool_directory = {folder}/spool
log_file_path = {folder}/log/%s
pid_file_path = {folder}/exim.pid
log_selector = +smtp_connection
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
primary_hostname = mail.test
keep_environment =
queue_only = true
smtp_accept_max = 300
smtp_accept_max_per_connection = 100000
smtp_accept_queue_per_connection = 0
tls_advertise_hosts = *
tls_certificate = {folder}/server.pem
tls_privatekey = {folder}/server.pem
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
pipelining_advertise_hosts = *
chunking_advertise_hosts = *
acl_smtp_mail = owned_sender
acl_smtp_rcpt = anybody
acl_smtp_data = anybody

begin acl

owned_sender:
  deny  message = 5.7.0 log in first
        !authenticated = *
  deny  message = 5.7.1 $sender_address is not owned by user $authenticated_id
        !condition = ${{if eqi{{$sender_address}}{{$authenticated_id@example.com}}}}
  accept

anybody:
  accept

begin authenticators

plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth3}}{{{password}}}}}{{inlist{{$auth2}}{{{logins}}}}}}}}}
  server_set_id = $auth2
"""


def why_not() -> str:
    """Why it can't be run here; empty if it can."""
    if os.geteuid() != 0:
        return "Exim can only be started by root"
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return f"there is no user {USER}"
    return "" if Path(BINARY).exists() else f"not installed: {BINARY}"


class Exim:
    """A running Exim, in which each login owns the address ``login@example.com``."""

    def __init__(self, folder: Path, authority: Authority, logins: list[str]):
        self.folder = folder
        self.port = free_port()
        self.authority = authority
        self.security = "starttls"
        self.log = folder / "log" / "main"
        folder.chmod(0o755)  # Exim's own user has to get there
        for name in ("spool", "log"):
            (folder / name).mkdir()
            shutil.chown(folder / name, USER, USER)
        pem = authority.ca.issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
        (folder / "server.pem").write_bytes(pem)
        shutil.chown(folder / "server.pem", USER, USER)
        self._config = folder / "exim.conf"
        self._config.write_text(
            CONFIG.format(
                folder=folder, port=self.port, password=PASSWORD, logins=" : ".join(logins)
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Exim:
        self.start()
        return self

    def __exit__(self, *exc) -> None:
        if self._process is not None:
            self.stop()

    def start(self) -> None:
        # A session of its own, so that those who hold connections can be ended with it.
        self._process = subprocess.Popen(
            [BINARY, "-C", str(self._config), "-bdf"], start_new_session=True
        )
        wait_for_greeting(self.port, self.log)

    def stop(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(20)
        self._process = None

    def accepted(self) -> list[tuple[str, str]]:
        """Login and sender of each message that Exim took, by its own log."""
        lines = re.findall(r" <= (\S+) .*A=plain:(\S+)", self.log.read_text())
        return [(login, sender) for sender, login in lines]

    def connections(self) -> int:
        text = self.log.read_text()
        return len(re.findall(r"SMTP connection from .*TCP/IP connection count", text))
