"""The socket: replies in any pieces, and whether an idle connection is alive, without asking."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from smtplib import SMTPServerDisconnected

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpool.smtp.reply import Reply
from mailpool.smtp.tls import tls_context
from mailpool.smtp.wire import NotSMTP, Wire


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Wire(ours, "test", 5), theirs


class TLSPeer:
    """The server's end of a TLS 1.3 connection that says only what it is told to."""

    def __init__(self, authority):
        self.authority = authority
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        sock, _ = self.listener.accept()
        context = self.authority.server_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.sock = context.wrap_socket(sock, server_side=True)
        self.ready.set()

    def connect(self) -> Wire:
        sock = socket.create_connection(self.listener.getsockname())
        wire = Wire(sock, "test", 5)
        wire.start_tls(tls_context(self.authority.pem), "127.0.0.1")
        assert self.ready.wait(5)
        return wire


@pytest.fixture
def tls(authority):
    peer = TLSPeer(authority)
    wire = peer.connect()
    yield wire, peer.sock
    wire.close()
    peer.sock.close()
    peer.listener.close()


def readable(wire):
    assert select.select([wire.sock], [], [], 5)[0], "nothing came"


def test_session_tickets_do_not_make_a_connection_look_dead(tls):
    wire, _ = tls
    readable(wire)  # the tickets: a look at the socket alone would call this dead
    assert wire.unexpected() is None
    assert wire.unexpected() is None


def test_late_goodbye_over_tls_is_seen_and_kept_for_the_log(tls):
    wire, server = tls
    wire.unexpected()
    server.sendall(b"421 4.4.2 idle too long\r\n")
    readable(wire)
    assert wire.unexpected() == "the server said '421 4.4.2 idle too long'"


@pytest.mark.parametrize("politely", [True, False])
def test_closed_tls_connection_is_seen(tls, politely):
    wire, server = tls
    wire.unexpected()
    if politely:
        server.settimeout(0)
        with pytest.raises((ssl.SSLWantReadError, OSError)):
            server.unwrap()
    server.shutdown(socket.SHUT_RDWR)
    readable(wire)
    assert wire.unexpected() is not None


def test_silent_plain_connection_is_alive(pair):
    wire, _ = pair
    assert wire.unexpected() is None


def test_closed_plain_connection_is_seen(pair):
    wire, peer = pair
    peer.close()
    assert wire.unexpected() == "closed by the server"


def test_late_goodbye_is_seen(pair):
    wire, peer = pair
    peer.sendall(b"421 bye\r\n")
    assert wire.unexpected() == "the server said '421 bye'"


def test_text_left_over_is_seen(pair):
    wire, peer = pair
    peer.sendall(b"250 one\r\n250 two\r\n")
    assert wire.read_reply().text == "one"
    assert wire.unexpected() == "unread data"


@given(
    cuts=st.lists(st.integers(0, 60), max_size=8),
    lines=st.lists(st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=20)),
)
def test_replies_are_read_in_any_pieces(cuts, lines):
    lines = [line.strip() for line in [*lines, "end"]]
    data = b"".join(
        f"250{'-' if number < len(lines) - 1 else ' '}{line}\r\n".encode("latin-1")
        for number, line in enumerate(lines)
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        start = 0
        for cut in sorted(cuts):
            theirs.sendall(data[start:cut])
            start = max(start, min(cut, len(data)))
        theirs.sendall(data[start:])
        reply = Wire(ours, "test", 5).read_reply()
    assert reply.code == 250
    assert reply.lines == tuple(line.encode("latin-1").strip() for line in lines)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_do_anything_else_than_it_says(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            reply = Wire(ours, "test", 5).read_reply()
        except SMTPServerDisconnected:
            return
    assert 200 <= reply.code <= 599
    assert data[:3] == str(reply.code).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"25 short\r\n",
        b"650 no such class\r\n",
        b"250-one\r\n251 two\r\n",
        b"\r\n",
        b"250x\r\n",
    ],
)
def test_what_is_not_smtp_is_not_taken_for_it(pair, data):
    wire, peer = pair
    peer.sendall(data)
    with pytest.raises(NotSMTP):
        wire.read_reply()


def test_text_ahead_of_the_handshake_is_rejected(pair, authority):
    """CVE-2021-22947: an answer injected in clear text is not read as an encrypted one."""
    wire, peer = pair
    peer.sendall(b"220 go ahead\r\n250-injected\r\n")
    wire.read_reply()
    with pytest.raises(NotSMTP, match="ahead of the TLS handshake"):
        wire.start_tls(tls_context(authority.pem), "localhost")


@pytest.mark.parametrize(
    ("line", "enhanced", "goodbye"),
    [
        (b"421 4.3.2 down", "4.3.2", True),
        (b"451 4.4.2 timeout", "4.4.2", True),
        (b"451 4.7.1 greylisted", "4.7.1", False),
        (b"250 2.0.0", "2.0.0", False),
        (b"250 4.x", "", False),
    ],
)
def test_enhanced_codes(line, enhanced, goodbye):
    reply = Reply(int(line[:3]), (line[4:],))
    assert reply.enhanced == enhanced
    assert reply.means_goodbye is goodbye
