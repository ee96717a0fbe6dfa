"""AUTH (RFC 4954): which mechanism, and what is said in it."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Iterator
from smtplib import SMTPServerDisconnected

from mailpool.secret import Secret, SecretBytes
from mailpool.smtp.reply import Reply
from mailpool.smtp.wire import NotSMTP

# In order of preference. PLAIN costs one round trip; a password is only ever sent over TLS or to
# this very machine, which the session sees to before it comes here. What CRAM-MD5 hides from the
# server's log it costs in the server's store, which has to have the password in clear text.
PASSWORD_MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")
EXTERNAL = "EXTERNAL"  # by the client certificate, RFC 4422
MECHANISMS = (*PASSWORD_MECHANISMS, EXTERNAL)


def _base64(data: bytes) -> SecretBytes:
    return SecretBytes(base64.b64encode(data))


def _plain(username: str, password: str) -> Iterator[Callable[[bytes], bytes]]:
    yield lambda _: b"\0%b\0%b" % (username.encode(), password.encode())


def _login(username: str, password: str) -> Iterator[Callable[[bytes], bytes]]:
    yield lambda _: username.encode()
    yield lambda _: password.encode()


def _cram_md5(username: str, password: str) -> Iterator[Callable[[bytes], bytes]]:
    def answer(challenge: bytes) -> bytes:
        try:
            decoded = base64.b64decode(challenge, validate=True)
        except binascii.Error:
            raise NotSMTP("The server's challenge is not base64.") from None
        digest = hmac.new(password.encode(), decoded, "md5").hexdigest()
        return f"{username} {digest}".encode()

    yield answer


def _external(username: str, password: str) -> Iterator[Callable[[bytes], bytes]]:
    yield lambda _: username.encode()  # whom to act as; empty: whomever the certificate names


_ANSWERS = {"PLAIN": _plain, "LOGIN": _login, "CRAM-MD5": _cram_md5, EXTERNAL: _external}
_SPEAKS_FIRST = {"PLAIN", EXTERNAL}


def authenticate(
    command: Callable[[bytes], Reply], mechanism: str, username: str, password: Secret
) -> Reply:
    """Go through *mechanism* with *command*, which sends a line and returns the reply.

    Returns the last reply: 235 is success, anything else is not. What the server says here may
    repeat what it was sent, so nothing of that goes any further, into errors least of all.
    """
    try:
        reply = _exchange(command, mechanism, username, password)
    except NotSMTP:
        raise NotSMTP("The server answered AUTH with something that is not SMTP.") from None
    except SMTPServerDisconnected as error:
        raise SMTPServerDisconnected(*error.args) from None  # without the frames that read it
    hidden = (_redact(line, username, password) for line in reply.lines)
    return Reply(reply.code, tuple(hidden))


def _exchange(
    command: Callable[[bytes], Reply], mechanism: str, username: str, password: Secret
) -> Reply:
    answers = _ANSWERS[mechanism](username, password)
    if mechanism in _SPEAKS_FIRST:
        first = _base64(next(answers)(b""))
        # RFC 4954: "=" is a first response that is there and empty.
        reply = command(SecretBytes(b"AUTH %b %b" % (mechanism.encode(), first or b"=")))
        if reply.code == 334:  # a server that overlooks the initial response
            reply = command(first)
        return reply
    reply = command(b"AUTH " + mechanism.encode())
    for answer in answers:
        if reply.code != 334:
            break
        reply = command(_base64(answer(reply.lines[-1])))
    return reply


def _redact(text: bytes, username: str, password: Secret) -> bytes:
    """*text* without the password, in any form that it was sent in."""
    if not password:
        return text
    plain = b"\0%b\0%b" % (username.encode(), password.encode())
    for secret in (password.encode(), _base64(plain), _base64(password.encode())):
        text = text.replace(secret, b"(hidden)")
    return text
