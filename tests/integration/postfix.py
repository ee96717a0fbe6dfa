"""A private Postfix with Dovecot's logins, in a folder of its own, on a port of its own.

Postfix refuses a sender that does not belong to the login (``reject_sender_login_mismatch``), so a
message that crossed over to another account would be refused.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.smtpd import PASSWORD, Authority

MAIN = """
compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
mail_owner = postfix
setgid_group = postdrop
maillog_file = {log}
maillog_file_prefixes = {folder}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mail.test
mydestination =
mynetworks =
alias_maps =
local_recipient_maps =
default_transport = discard:
smtpd_banner = mail.test ESMTP
smtpd_tls_security_level = encrypt
smtpd_tls_cert_file = {folder}/server.pem
smtpd_tls_key_file = {folder}/server.pem
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:127.0.0.1:{auth_port}
smtpd_sender_login_maps = texthash:{folder}/logins
smtpd_sender_restrictions = reject_sender_login_mismatch
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
default_process_limit = 300
"""

MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""

DOVECOT = """
base_dir = {folder}/dovecot
state_dir = {folder}/dovecot-state
log_path = {folder}/dovecot.log
protocols =
ssl = no
default_internal_user = root
default_login_user = nobody
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {folder}/passwords
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home=/nonexistent
}}
auth_mechanisms = plain login
service auth {{
  chroot =
  inet_listener {{
    address = 127.0.0.1
    port = {auth_port}
  }}
}}
service anvil {{
  chroot =
}}
"""


def why_not() -> str:
    """Why it can't be run here; empty if it can."""
    if os.geteuid() != 0:
        return "Postfix can only be started by root"
    paths = ("/usr/sbin/postfix", "/usr/sbin/dovecot")
    missing = [path for path in paths if not Path(path).exists()]
    return f"not installed: {', '.join(missing)}" if missing else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_greeting(port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as probe:
                if probe.recv(100).startswith(b"220"):
                    return
        except OSError:
            pass
        assert time.monotonic() < deadline, log.read_text() if log.exists() else ""


class Postfix:
    """A running Postfix, in which each login owns the address ``login@example.com``."""

    def __init__(self, folder: Path, authority: Authority, logins: list[str]):
        self.folder = folder
        self.port = free_port()
        self.authority = authority
        self.security = "starttls"
        self.log = folder / "maillog"
        self._config = folder / "etc"
        values = {
            "folder": folder,
            "queue": folder / "queue",
            "data": folder / "data",
            "log": self.log,
            "port": self.port,
            "auth_port": free_port(),
        }
        for name in ("etc", "queue", "data", "dovecot", "dovecot-state"):
            (folder / name).mkdir()
        folder.chmod(0o755)  # Postfix's own user has to get there
        shutil.chown(folder / "data", "postfix")
        (self._config / "main.cf").write_text(MAIN.format(**values))
        (self._config / "master.cf").write_text(MASTER.format(**values))
        (folder / "dovecot.conf").write_text(DOVECOT.format(**values))
        (folder / "passwords").write_text("".join(f"{who}:{PASSWORD}\n" for who in logins))
        (folder / "logins").write_text("".join(f"{who}@example.com {who}\n" for who in logins))
        pem = authority.ca.issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
        (folder / "server.pem").write_bytes(pem)
        self._dovecot: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Postfix:
        config = self.folder / "dovecot.conf"
        self._dovecot = subprocess.Popen(["/usr/sbin/dovecot", "-F", "-c", str(config)])
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc) -> None:
        assert self._dovecot is not None
        try:
            self._postfix("stop", check=False)  # a test may have stopped it
        finally:
            self._dovecot.terminate()
            self._dovecot.wait(20)

    def start(self) -> None:
        self._postfix("start")
        wait_for_greeting(self.port, self.log)

    def stop(self) -> None:
        self._postfix("stop")

    def _postfix(self, command: str, *, check: bool = True) -> None:
        subprocess.run(
            ["/usr/sbin/postfix", "-c", str(self._config), command],
            check=check,
            capture_output=True,
            timeout=60,
        )

    def accepted(self) -> list[tuple[str, str]]:
        """Login and sender of each message that Postfix took, by its own log."""
        log = self.log.read_text()
        logins = dict(re.findall(r"smtpd\[\d+\]: (\w+): client=.*sasl_username=(\S+)", log))
        senders = dict(re.findall(r"qmgr\[\d+\]: (\w+): from=<([^>]*)>, size", log))
        return [(logins.get(queue_id, "?"), sender) for queue_id, sender in senders.items()]

    def connections(self) -> int:
        return len(re.findall(r"smtpd\[\d+\]: connect from", self.log.read_text()))
