"""TLS contexts, and TLS sessions that a later connection of the same key takes up again."""

from __future__ import annotations

import itertools
import ssl
import sys
from functools import lru_cache
from typing import NamedTuple

# Python before 3.12.8 and 3.13.1 never frees what it copies when a socket's session is read: about
# seven kilobytes each time (CPython gh-116810). There a process reads so many and no more.
_READING_LEAKS = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)
_MAX_LEAKS = 1000

_leaks = itertools.count(1)


@lru_cache(maxsize=1000)
def tls_context(ca_certificate: str) -> ssl.SSLContext:
    """The context that verifies against *ca_certificate* (PEM; empty: the system's authorities).

    Made once: loading the authorities can take longer than a handshake and a megabyte each. So
    keys with the same authorities share one, and nothing else of a connection is kept in it:
    Python resumes no TLS session but the one that is passed by hand, and those are kept by key.
    """
    context = ssl.create_default_context(cadata=ca_certificate or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Resumable(NamedTuple):
    """A TLS session for the next connection of the same key."""

    context: ssl.SSLContext
    session: ssl.SSLSession

    @classmethod
    def of(cls, sock: ssl.SSLSocket) -> Resumable | None:
        """What the server lets a later connection take up again, if anything.

        With TLS 1.3 that comes along with the first answers, so it is not there before those.
        """
        if _READING_LEAKS and next(_leaks) > _MAX_LEAKS:
            return None
        session = sock.session
        if session is None or not (session.has_ticket or session.id):
            return None
        return cls(sock.context, session)

    def session_for(self, context: ssl.SSLContext) -> ssl.SSLSession | None:
        """The session, where it belongs to *context*; Python takes it with no other one.

        Two threads that need the first context at the same time may make one each.
        """
        return self.session if self.context is context else None
