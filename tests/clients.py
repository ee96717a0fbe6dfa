"""Client certificates for tests, and a server that asks for one and writes down whose it was."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import trustme

from tests.scripted import EXTENSIONS, ScriptedServer

TLS_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


class ClientCertificate(NamedTuple):
    certificate: str
    key: str

    @property
    def as_params(self) -> dict[str, str]:
        return {"client_certificate": self.certificate, "client_key": self.key}


class ClientAuthority:
    """Issues client certificates, by an intermediate authority of its own."""

    def __init__(self) -> None:
        self.root = trustme.CA()
        self.issuer = self.root.create_child_ca()

    def issue(self, name: str, *, days: float = 365) -> ClientCertificate:
        """One for *name*, with its chain, that expires so many days from now."""
        leaf = self.issuer.issue_cert(
            f"{name}@client.example",
            common_name=name,
            not_after=datetime.now(UTC) + timedelta(days=days),
        )
        chain = "".join(pem.bytes().decode() for pem in leaf.cert_chain_pems)
        return ClientCertificate(chain, leaf.private_key_pem.bytes().decode())


class CertificateServer(ScriptedServer):
    """Asks for a certificate of *clients*; ``shown`` is (name in it, sender) of each message."""

    def __init__(self, authority, clients, *, version=None, security="starttls", offers=EXTENSIONS):
        context = authority.server_context()
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients.root.cert_pem.bytes().decode())
        if version:
            context.minimum_version = context.maximum_version = TLS_VERSIONS[version]
        super().__init__(security=security, context=context, extensions=offers)
        self.authority = authority
        self.shown: list[tuple[str, str]] = []
        self.when("MAIL")._does(self._note).then.behaves()

    def _note(self, talk) -> None:
        subject = {name: value for ((name, value),) in talk.sock.getpeercert()["subject"]}
        self.shown.append((subject["commonName"], talk.sender))
