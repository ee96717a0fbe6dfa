"""A name server for tests: UDP on loopback, with the TXT records that it is told."""

from __future__ import annotations

import socket
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer:
    """``with NameServer() as server:`` answers at ``server.address``, ``127.0.0.1:port``.

    ``server.txt[name]`` are the records of a name, each as zone files have it; a name without any
    does not exist. ``server.alias[name]`` leads elsewhere. Without ``answers`` it is silent.
    """

    def __init__(self) -> None:
        self.txt: dict[str, list[str]] = {}
        self.alias: dict[str, str] = {}
        self.answers = True
        self.rcode: int | None = None
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    @property
    def address(self) -> str:
        return "{}:{}".format(*self._socket.getsockname())

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as goodbye:
            goodbye.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, peer = self._socket.recvfrom(4096)
            if not data:
                return
            query = dns.message.from_wire(data)
            self.asked.append(query.question[0].name.to_text())
            if self.answers:
                self._socket.sendto(self._answer(query).to_wire(), peer)

    def _answer(self, query):
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        name = query.question[0].name.to_text().rstrip(".").lower()
        if self.rcode is not None:
            response.set_rcode(self.rcode)
            return response
        if target := self.alias.get(name):
            response.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", f"{target}."))
            name = target
        if name in self.txt and query.question[0].rdtype == dns.rdatatype.TXT:
            response.answer.append(
                dns.rrset.from_text_list(f"{name}.", 60, "IN", "TXT", self.txt[name])
            )
        else:
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response
