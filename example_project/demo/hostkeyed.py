"""The bug that mailpool exists for, written out. Never do this.

Connections are kept by host and port. Whoever sends next to that host gets the open connection,
which is authenticated as whoever opened it.
"""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage


class HostKeyedCache:
    """What "Maintain connection to mail server" once did."""

    def __init__(self) -> None:
        self._connections: dict[tuple[str, int], smtplib.SMTP] = {}

    def send(self, params, message: EmailMessage) -> None:
        key = (params.host, params.port)  # the bug: not whose login it is
        connection = self._connections.get(key)
        if connection is None:
            connection = smtplib.SMTP(params.host, params.port, local_hostname="localhost")
            connection.starttls(context=ssl.create_default_context(cadata=params.ca_certificate))
            connection.login(params.username, params.password)
            self._connections[key] = connection
        connection.send_message(message)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.quit()
