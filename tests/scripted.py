"""A mail server that misbehaves on command. Scripts read like sentences::

server.when("MAIL").says("421 4.3.2 going down").then.closes()
server.when("end of data", connection=2).freezes()
server.when("body", occurrence=3).reads(100).then.resets()
server.when("RCPT").swallows()
server.speaks(3)
server.lies_about("CHUNKING")
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

EXTENSIONS = ("PIPELINING", "CHUNKING", "8BITMIME", "ENHANCEDSTATUSCODES", "AUTH PLAIN LOGIN")


@dataclass
class Rule:
    """What to do at one step, instead of what a good server does."""

    step: str
    connection: int | None = None
    occurrence: int | None = None
    sender: str | None = None
    times: int | None = None
    actions: list[Callable[[Conversation], object]] = field(default_factory=list)

    @property
    def then(self) -> Rule:
        return self

    def applies(self, talk: Conversation, count: int) -> bool:
        """Whether it is for this step of *talk*, the *count*-th on its connection."""
        if (
            self.step != talk.step
            or self.connection not in (None, talk.number)
            or self.occurrence not in (None, count)
            or self.sender not in (None, talk.sender)
            or self.times == 0
        ):
            return False
        if self.times is not None:
            self.times -= 1
        return True

    def _does(self, action) -> Rule:
        self.actions.append(action)
        return self

    def says(self, text: str) -> Rule:
        """Answer with *text*; the line end is added."""
        return self._does(lambda talk: talk.say(text))

    def sends(self, data: bytes) -> Rule:
        """Send exactly these bytes."""
        return self._does(lambda talk: talk.write(data))

    def swallows(self) -> Rule:
        """Do what a good server does, but leave out the reply."""
        return self._does(lambda talk: talk.behave(silently=True))

    def reads(self, count: int) -> Rule:
        """Take so many bytes of what comes."""
        return self._does(lambda talk: talk.read(count))

    def waits_for(self, event: threading.Event) -> Rule:
        """Do nothing until *event* is set."""
        return self._does(lambda talk: talk.wait(event))

    def sets(self, event: threading.Event) -> Rule:
        return self._does(lambda talk: event.set())

    def closes(self) -> Rule:
        return self._does(lambda talk: talk.close())

    def resets(self) -> Rule:
        """Close with a TCP reset."""
        return self._does(lambda talk: talk.reset())

    def freezes(self) -> Rule:
        """Answer nothing any more, until the server is stopped."""
        return self._does(lambda talk: talk.freeze())

    def behaves(self) -> Rule:
        """Go on as a good server, after what was said before."""
        return self._does(lambda talk: talk.behave())


class _Gone(Exception):
    pass


class Conversation:
    """One connection, handled in its own thread."""

    def __init__(self, server: ScriptedServer, sock: socket.socket, number: int):
        self.server = server
        self.sock = sock
        self.number = number
        self.step = ""
        self.line = b""
        self._buffer = None
        self._silent = False
        self.counts: dict[str, int] = {}
        self.sender = ""
        self._forget()
        self.waits = False
        self.ended = False

    def _forget(self):
        """No transaction is under way."""
        self.has_sender = False
        self.recipients = 0
        self.chunks = b""

    def write(self, data: bytes) -> bool:
        """Whether it left. If the client is gone, what it said before is heard all the same."""
        size = self.server.piece or len(data)
        try:
            for start in range(0, 0 if self._silent else len(data), size):
                self.sock.sendall(data[start : start + size])
        except OSError:
            return False
        return not self._silent

    def say(self, text: str) -> None:
        """One reply, of which a good server knows what it means."""
        if text[0] == "2":
            self._accept()
        if self.step == "end of data":
            self._forget()
        if self.write(text.encode() + b"\r\n") and self.step == "end of data":
            with self.server.lock:
                self.server.answered.append(self.body)

    def refuse(self, text: str) -> None:
        """A refusal instead of a good server's reply; what comes along is read all the same."""
        if self.step == "BDAT":
            self.read(int(self.line.split()[1]))
            self._forget()
        self.say(text)

    def _accept(self):
        if self.step == "MAIL":
            self.has_sender = True
        elif self.step == "RCPT":
            self.recipients += 1
        elif self.step == "end of data":
            with self.server.lock:
                self.server.accepted.append(self.body)

    def close(self):
        raise _Gone

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Gone

    def freeze(self):
        self.wait(self.server.stopping)
        raise _Gone

    def wait(self, event):
        self.waits = True
        self.server.tell()
        while not event.wait(0.01):
            if self.server.stopping.is_set():
                raise _Gone
        self.waits = False

    def read(self, count):
        if len(self._buffer.read(count)) < count:
            raise _Gone

    def run(self) -> None:
        try:
            if self.server.context and self.server.security == "tls":
                self.sock = self.server.context.wrap_socket(self.sock, server_side=True)
            self._listen()
            self.at("greeting")
            while line := self._buffer.readline():
                self.line = line.rstrip(b"\r\n")
                verb = self.line.split(b" ")[0].split(b":")[0].upper().decode("ascii", "replace")
                with self.server.lock:
                    self.server.commands.append((self.number, self.line.decode("utf-8", "replace")))
                self.at(verb)
                if "PIPELINING" in self.server.lies and verb != "DATA":
                    self._buffer.read1(len(self._buffer.peek()))  # what came along is lost
        except (_Gone, OSError, ValueError):
            pass
        finally:
            if self._buffer:
                self._buffer.close()  # keeps the socket open otherwise
            self.sock.close()
            self.ended = True
            self.server.tell()

    def at(self, step: str) -> None:
        self.step = step
        self.counts[step] = count = self.counts.get(step, 0) + 1
        if step == "MAIL":
            self.sender = self.line.decode("utf-8", "replace").partition("<")[2].partition(">")[0]
        for action in self.server.choose(self, count):
            action(self)
            self.step = step

    def behave(self, silently: bool = False) -> None:
        self._silent = silently
        handler = getattr(self, "on_" + self.step.replace(" ", "_").lower(), None)
        if handler:
            handler()
        else:
            self.write(b"502 5.5.2 not known\r\n")
        self._silent = False

    def on_greeting(self):
        self.write(b"220 scripted ESMTP\r\n")

    def on_ehlo(self):
        lines = ["scripted", *self.server.extensions]
        if self.server.security == "starttls" and not isinstance(self.sock, ssl.SSLSocket):
            lines.append("STARTTLS")
        last = len(lines) - 1
        reply = "".join(f"250{' ' if n == last else '-'}{line}\r\n" for n, line in enumerate(lines))
        self.write(reply.encode())

    on_helo = on_noop = lambda self: self.write(b"250 2.0.0 ok\r\n")

    def on_rset(self):
        self._forget()
        self.write(b"250 2.0.0 ok\r\n")

    def on_starttls(self):
        self.write(b"220 2.0.0 go ahead\r\n")
        self.sock = self.server.context.wrap_socket(self.sock, server_side=True)
        self._listen()

    def _listen(self):
        self._buffer = self.sock.makefile("rb")

    def on_auth(self):
        self.write(b"235 2.7.0 welcome\r\n")

    def on_mail(self):
        if self.has_sender:
            self.write(b"503 5.5.1 nested MAIL command\r\n")
        else:
            self.say("250 2.1.0 ok")

    def on_rcpt(self):
        if self.has_sender:
            self.say("250 2.1.5 ok")
        else:
            self.write(b"503 5.5.1 MAIL first\r\n")

    def on_data(self):
        if self.recipients == 0:
            self.write(b"503 5.5.1 RCPT first\r\n")
            return
        self.write(b"354 go ahead\r\n")
        self.at("body")
        body = b""
        while not body.endswith(b"\r\n.\r\n") and body != b".\r\n":
            line = self._buffer.readline()
            if not line:
                self.server.partial.append(body)
                raise _Gone
            body += line
        self._end(body)

    def on_body(self):
        """Nothing is said before it is there."""

    def on_bdat(self):
        if not {"CHUNKING"} & set(self.server.extensions) - self.server.lies:
            self.write(b"502 5.5.2 not known\r\n")
            return
        size, *last = self.line.split()[1:]
        chunk = self._buffer.read(int(size))
        self.chunks += chunk
        if len(chunk) < int(size):
            self.server.partial.append(self.chunks)
            raise _Gone
        if self.recipients == 0:
            self.chunks = b""
            self.write(b"503 5.5.1 RCPT first\r\n")
        elif last:
            self._end(self.chunks)
        else:
            self.write(b"250 2.0.0 chunk taken\r\n")

    def _end(self, body):
        self.body = body
        with self.server.lock:
            self.server.bodies.append((self.number, body))
        self.at("end of data")

    def on_end_of_data(self):
        self.say(f"250 2.0.0 queued as {len(self.server.bodies)}")

    def on_quit(self):
        self.write(b"221 2.0.0 bye\r\n")
        raise _Gone


class ScriptedServer:
    """``with ScriptedServer() as server:`` listens on 127.0.0.1 and is a good server by default.

    ``commands`` are (connection, line), ``bodies`` (connection, message as it came, with its final
    dot), ``accepted`` those bodies that it has taken over, ``answered`` those that got a reply.
    """

    def __init__(self, *, security="plain", context=None, extensions=EXTENSIONS):
        self.security = security
        self.context = context
        self.extensions = list(extensions)
        self.rules: list[Rule] = []
        self.commands: list[tuple[int, str]] = []
        self.bodies: list[tuple[int, bytes]] = []
        self.accepted: list[bytes] = []
        self.answered: list[bytes] = []
        self.partial: list[bytes] = []
        self.lies: set[str] = set()
        self.piece = 0
        self.connections = 0
        self.lock = threading.RLock()
        self._told = threading.Condition(self.lock)
        self._conversations: list[Conversation] = []
        self.stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def when(
        self,
        step: str,
        *,
        connection: int | None = None,
        occurrence: int | None = None,
        sender: str | None = None,
        times: int | None = None,
    ) -> Rule:
        """Begin a rule for *step*: a verb, ``greeting``, ``body`` or ``end of data``.

        For all of them, or on the given connection, at its n-th occurrence there, in a message
        from *sender*, and so many times at the most.
        """
        rule = Rule(step, connection, occurrence, sender, times)
        self.rules.insert(0, rule)
        return rule

    def choose(self, talk: Conversation, count: int) -> list[Callable[[Conversation], object]]:
        """What to do at the step that *talk* has come to."""
        with self.lock:
            rule = next((rule for rule in self.rules if rule.applies(talk, count)), None)
        return rule.actions if rule else [Conversation.behave]

    def speaks(self, size: int) -> None:
        """Send each reply in pieces of *size* bytes."""
        self.piece = size

    def lies_about(self, extension: str) -> None:
        """Offer *extension* without having it."""
        self.lies.add(extension)

    def verbs(self, connection: int | None = None) -> list[str]:
        """The verbs that came, in order."""
        return [
            line.split(" ")[0].split(":")[0].upper()
            for number, line in self.commands
            if connection in (None, number)
        ]

    def tell(self) -> None:
        """A conversation has ended, or waits for something."""
        with self._told:
            self._told.notify_all()

    def catch_up(self, clients_sessions: int) -> None:
        """Until the server has read what came over connections that the client has closed.

        The client has so many left.
        """

        def has_caught_up():
            talking = [each for each in self._conversations if not (each.ended or each.waits)]
            return len(talking) <= clients_sessions

        with self._told:
            assert self._told.wait_for(has_caught_up, 30), "the server still has a client"

    def __enter__(self) -> ScriptedServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        self._threads.append(thread)
        return self

    def __exit__(self, *exc) -> None:
        self.stop()

    def stop(self) -> None:
        """End all conversations; afterwards the records are complete."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._sockets.append(sock)
            conversation = Conversation(self, sock, self.connections)
            self._conversations.append(conversation)
            thread = threading.Thread(target=conversation.run, daemon=True)
            thread.start()
            self._threads.append(thread)
