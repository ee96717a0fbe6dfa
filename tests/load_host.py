"""A mail host in a process of its own, for load: keeps counts instead of messages.

Prints its port and CA as one JSON line; for each line on standard input, its counts as another.
"""

from __future__ import annotations

import json
import logging
import sys

from tests.smtpd import Authority, MailHost


class CountingHost(MailHost):
    """Files only what a test of many messages has to know."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen: set[bytes] = set()
        self.crossed = self.twice = 0

    async def handle_DATA(self, server, session, envelope):
        subject = envelope.original_content.split(b"Subject: ", 1)[1].split(b"\r\n", 1)[0]
        login = session.auth_data.login.decode()
        self.crossed += envelope.mail_from.split("@")[0] != login
        self.twice += subject in self.seen
        self.seen.add(subject)
        return "250 2.0.0 queued"


def main() -> None:
    logging.disable(logging.CRITICAL)
    authority = Authority()
    security = sys.argv[1] if len(sys.argv) > 1 else "starttls"
    with CountingHost(authority, security=security) as host:
        print(json.dumps({"port": host.port, "ca": authority.pem}), flush=True)
        for _ in sys.stdin:
            report = {
                "messages": len(host.seen),
                "crossed": host.crossed,
                "twice": host.twice,
                "connections": host.connections,
                "open": host.open,
                "most_open": host.most_open,
            }
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
