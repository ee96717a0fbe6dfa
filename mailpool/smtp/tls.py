"""TLS contexts, and TLS sessions that a later connection of the same key takes up again."""

from __future__ import annotations

import contextlib
import itertools
import os
import ssl
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from mailpool.exceptions import ClientCertificateError
from mailpool.secret import Secret, SecretBytes

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
    return _make_context(ca_certificate)


# Fewer, since each may have all of the system's authorities to itself.
@lru_cache(maxsize=100)
def client_context(ca_certificate: str, certificate: str, key: Secret) -> ssl.SSLContext:
    """The same with a client certificate (PEM, with its chain) and its key.

    ``ClientCertificateError`` where OpenSSL does not take them.
    """
    context = _make_context(ca_certificate)
    content = SecretBytes(f"{certificate.strip()}\n{key.strip()}\n".encode())
    try:
        with private_file(content) as path:
            # The passphrase, for otherwise a key with one has OpenSSL ask for it at the terminal.
            context.load_cert_chain(path, password=lambda: "")
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise ClientCertificateError(
            f"The client certificate can't be used ({reason}). Enter it again with its key."
        ) from None
    return context


def _make_context(ca_certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca_certificate or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@contextlib.contextmanager
def private_file(content: SecretBytes) -> Iterator[str]:
    """The path of a file with *content*, for what takes nothing but a path; gone with the block.

    In memory where the system can do that. Else readable by this user only, and on the disk for
    as long as OpenSSL takes to read it.
    """
    path = ""
    descriptor = _in_memory()
    if descriptor is None:
        descriptor, path = tempfile.mkstemp(prefix="mailpool-")
    try:
        os.fchmod(descriptor, 0o600)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield path or f"/proc/self/fd/{descriptor}"
    finally:
        if path:
            os.unlink(path)
        os.close(descriptor)


def _in_memory() -> int | None:
    """A file without a name, that can be opened by its descriptor all the same."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        descriptor = os.memfd_create("mailpool")
    except OSError:
        return None  # forbidden to this process
    if os.path.exists(f"/proc/self/fd/{descriptor}"):
        return descriptor
    os.close(descriptor)
    return None


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
