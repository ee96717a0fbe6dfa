"""Client certificates on real sockets, and logins that are never talked down."""

from __future__ import annotations

import base64
import glob
import os
import smtplib
import ssl
import stat
import tempfile
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization

from mailpool.exceptions import ClientCertificateError
from mailpool.secret import Secret, SecretBytes
from mailpool.smtp import Envelope, Session, SessionParams, SessionPool, Transmitter, tls
from tests.clients import TLS_VERSIONS, CertificateServer, ClientAuthority
from tests.scripted import ScriptedServer
from tests.smtpd import MailHost


@pytest.fixture(scope="session")
def clients():
    return ClientAuthority()


@pytest.fixture(scope="session")
def bob(clients):
    return clients.issue("bob")


@pytest.fixture(params=TLS_VERSIONS)
def version(request):
    return request.param


@pytest.fixture(params=["starttls", "tls"])
def server(request, authority, clients, version):
    with CertificateServer(authority, clients, version=version, security=request.param) as server:
        yield server


def params_of(server, client=None, **kwargs):
    return SessionParams(
        **{
            "credential_id": "bob",
            "host": "localhost",
            "port": server.port,
            "security": server.security,
            "ca_certificate": server.authority.pem,
            "timeout": 5,
            **(client.as_params if client else {}),
            **kwargs,
        }
    )


def envelope(sender):
    return Envelope(f"{sender}@example.com", ("a@example.com",), b"Subject: hello\r\n\r\nhello\r\n")


def send(pool, params, sender):
    transmitter = Transmitter(pool)
    try:
        return transmitter.send(params, envelope(sender))
    finally:
        transmitter.release()


@pytest.fixture
def pool():
    pool = SessionPool(timeout=5)
    yield pool
    pool.close()


# Shown, and to whom


def test_the_certificate_is_shown_with_its_chain(server, bob, pool):
    for _ in range(2):
        send(pool, params_of(server, bob), "bob")
    assert server.shown == [("bob", "bob@example.com")] * 2
    assert server.connections == 1


def test_connections_are_never_shared_between_two_certificates(server, clients, bob, pool):
    mary = clients.issue("mary")
    for _ in range(3):
        send(pool, params_of(server, bob), "bob")
        send(pool, params_of(server, mary, credential_id="mary"), "mary")
    assert server.connections == 2
    assert set(server.shown) == {("bob", "bob@example.com"), ("mary", "mary@example.com")}
    # Nor where all else is equal, the credential's id included.
    server.shown.clear()
    other = clients.issue("bob's new one")
    for _ in range(2):
        send(pool, params_of(server, bob), "old")
        send(pool, params_of(server, other), "new")
    assert set(server.shown) == {("bob", "old@example.com"), ("bob's new one", "new@example.com")}


def test_tls_sessions_are_never_resumed_with_another_certificate(server, clients, bob, pool):
    other = clients.issue("mary")
    resumed = []
    for client in (bob, bob, other, other):
        with pool.session(params_of(server, client), fresh=True) as session:
            session.send(envelope("bob"))  # with TLS 1.3 the ticket comes along with an answer
            resumed.append(session.tls_resumed)
            session.abort("so that the next one connects")
    assert resumed[0] is resumed[2] is False
    assert [name for name, _ in server.shown] == ["bob", "bob", "mary", "mary"]


def test_contexts_are_kept_by_authority_certificate_and_key(authority, clients, bob):
    mary = clients.issue("mary")

    def context(ca, client):
        return tls.client_context(ca, client.certificate, Secret(client.key))

    assert context(authority.pem, bob) is context(authority.pem, bob)
    others = {context(authority.pem, mary), context("", bob), tls.tls_context(authority.pem)}
    assert len(others | {context(authority.pem, bob)}) == 4


# Not accepted


def failure(server, client, **kwargs):
    with pytest.raises((smtplib.SMTPException, OSError)) as caught:
        Session.open(params_of(server, client, **kwargs))
    assert server.shown == []
    return caught.value


def test_missing(server, version):
    error = failure(server, None)
    assert "want" in str(error)
    assert "a client certificate" in str(error)
    # TLS 1.2 has no word of its own for it.
    assert isinstance(error, {"TLSv1.2": ssl.SSLError, "TLSv1.3": ClientCertificateError}[version])


def test_of_another_authority(server):
    error = failure(server, ClientAuthority().issue("bob"))
    assert isinstance(error, ClientCertificateError)
    assert "did not accept the client certificate: it does not know the authority" in str(error)


def test_expired(server, clients):
    error = failure(server, clients.issue("bob", days=-1))
    assert isinstance(error, ClientCertificateError)
    assert "did not accept the client certificate: it says that it has expired" in str(error)


def test_a_server_that_ends_the_connection_without_a_word(authority, clients):
    context = authority.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=clients.root.cert_pem.bytes().decode())
    with MailHost(authority, context=context) as host:
        with pytest.raises(smtplib.SMTPException, match="client certificate"):
            Session.open(params_of(host))
        with pytest.raises(smtplib.SMTPException, match="client certificate"):
            Session.open(params_of(host, ClientAuthority().issue("bob")))


def test_the_servers_own_certificate_is_verified_all_the_same(server, bob):
    error = failure(server, bob, ca_certificate=ClientAuthority().root.cert_pem.bytes().decode())
    assert isinstance(error, ssl.SSLCertVerificationError)


# The key and the file that OpenSSL wants


def trial(client):
    tls.client_context("", client.certificate, Secret(client.key))


@pytest.fixture(params=["memory", "disk"])
def directory(request, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if request.param == "disk":
        monkeypatch.setattr(tls, "_in_memory", lambda: None)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("no files in memory here")
    tls.client_context.cache_clear()
    return tmp_path


def test_the_file_is_private_and_gone_afterwards(directory, bob, monkeypatch):
    seen = []
    load = ssl.SSLContext.load_cert_chain

    def look(self, path, **kwargs):
        status = os.stat(path)
        seen.append((stat.S_IMODE(status.st_mode), status.st_uid, len(os.listdir(directory))))
        load(self, path, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    descriptors = glob.glob("/proc/self/fd/*")
    trial(bob)
    on_disk = int(tls._in_memory() is None)
    assert seen == [(0o600, os.getuid(), on_disk)]
    assert os.listdir(directory) == []
    assert len(glob.glob("/proc/self/fd/*")) <= len(descriptors) + 1 - on_disk


@pytest.mark.parametrize("error", [ValueError("in OpenSSL"), KeyboardInterrupt()])
def test_the_file_is_gone_after_an_exception(directory, error):
    paths = []
    with pytest.raises(type(error)), tls.private_file(SecretBytes(b"key")) as path:
        paths.append(path)
        with open(path, "rb") as file:
            assert file.read() == b"key"
        raise error
    assert not os.path.exists(paths[0])
    assert os.listdir(directory) == []


def encrypted(key):
    loaded = serialization.load_pem_private_key(key.encode(), None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    ).decode()


@pytest.mark.parametrize("wrong", ["another key", "encrypted", "no key", "no certificate"])
def test_what_openssl_does_not_take_is_an_error_in_plain_words(directory, clients, bob, wrong):
    changed = {
        "another key": bob._replace(key=clients.issue("mary").key),
        "encrypted": bob._replace(key=encrypted(bob.key)),
        "no key": bob._replace(key="nonsense"),
        "no certificate": bob._replace(certificate="nonsense"),
    }[wrong]
    with pytest.raises(ClientCertificateError, match="can't be used") as caught:
        trial(changed)
    assert changed.key.splitlines()[0] not in str(caught.value)
    assert os.listdir(directory) == []


# The login


@pytest.fixture
def open_session(authority, clients):
    """Open a session with a server that offers these mechanisms; gives it and the AUTH lines."""
    made = []

    def open_session(*offered, says=None, client=None, **kwargs):
        extensions = ["PIPELINING", *([f"AUTH {' '.join(offered)}"] if offered else [])]
        server = CertificateServer(authority, clients, offers=extensions)
        if client is None:
            server.context.verify_mode = ssl.CERT_NONE
        server.__enter__()
        made.append(server)
        for answer in says or ():
            server.when("AUTH", times=1).says(answer)
        try:
            session = Session.open(params_of(server, client, **kwargs))
            made.append(session)
        except Exception as error:
            session = error
        return session, [line for _, line in server.commands if line.startswith("AUTH")]

    yield open_session
    for each in reversed(made):
        each.abort("done") if isinstance(each, Session) else each.stop()


PASSWORD = {"username": "bob", "password": "secret"}


@pytest.mark.parametrize(
    ("offered", "used"),
    [
        (("CRAM-MD5", "LOGIN", "PLAIN", "EXTERNAL"), "PLAIN"),
        (("CRAM-MD5", "LOGIN"), "LOGIN"),
    ],
)
def test_automatic_takes_the_first_that_is_offered(open_session, offered, used):
    session, lines = open_session(*offered, **PASSWORD)
    assert session.mechanism == used
    assert [line.split()[1] for line in lines] == [used]


@pytest.mark.parametrize("offered", [(), ("XOAUTH2", "ANONYMOUS"), ("EXTERNAL",)])
def test_automatic_goes_no_lower_than_what_is_listed(open_session, offered):
    error, lines = open_session(*offered, **PASSWORD)
    assert isinstance(error, smtplib.SMTPNotSupportedError)
    assert "mailpool logs in by PLAIN, LOGIN, CRAM-MD5" in str(error)
    assert lines == []


@pytest.mark.parametrize("chosen", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_a_chosen_mechanism_is_the_only_one(open_session, chosen):
    others = {"PLAIN", "LOGIN", "CRAM-MD5", "EXTERNAL"} - {chosen}
    error, lines = open_session(*others, mechanism=chosen, **PASSWORD)
    assert isinstance(error, smtplib.SMTPNotSupportedError)
    assert f"this account may only log in by {chosen}. Nothing secret was sent" in str(error)
    assert lines == []
    # Nor if the server offers it and takes it back: 504 is "no such mechanism".
    error, lines = open_session(*others, chosen, mechanism=chosen, says=["504 no"], **PASSWORD)
    assert isinstance(error, smtplib.SMTPAuthenticationError)
    assert [line.split()[1] for line in lines] == [chosen]


def test_a_chosen_mechanism_is_used(open_session):
    session, lines = open_session("PLAIN", "LOGIN", mechanism="LOGIN", **PASSWORD)
    assert session.mechanism == "LOGIN"
    assert lines == ["AUTH LOGIN"]


def test_without_a_username_the_certificate_logs_in(open_session, bob):
    session, lines = open_session("PLAIN", "EXTERNAL", client=bob)
    assert lines == ["AUTH EXTERNAL ="]
    assert session.mechanism == "EXTERNAL"


def test_without_a_username_and_without_external_there_is_no_login(open_session, bob):
    for offered in ((), ("PLAIN",)):
        session, lines = open_session(*offered, client=bob)
        assert (session.mechanism, lines) == ("", [])
        session.send(envelope("bob"))


def test_with_a_password_the_certificate_is_no_login(open_session, bob):
    session, lines = open_session("EXTERNAL", "LOGIN", client=bob, **PASSWORD)
    assert (session.mechanism, lines) == ("LOGIN", ["AUTH LOGIN"])


@pytest.mark.parametrize("offered", [(), ("PLAIN", "LOGIN")])
def test_external_that_was_chosen_has_to_be_offered(open_session, bob, offered):
    error, lines = open_session(*offered, client=bob, mechanism="EXTERNAL")
    assert isinstance(error, smtplib.SMTPNotSupportedError)
    assert "may only log in by EXTERNAL" in str(error)
    assert lines == []


def test_external_names_whom_to_act_as(open_session, bob):
    session, lines = open_session("EXTERNAL", client=bob, mechanism="EXTERNAL", username="shop")
    assert lines == [f"AUTH EXTERNAL {base64.b64encode(b'shop').decode()}"]
    assert session.mechanism == "EXTERNAL"


def test_external_that_is_refused(open_session, bob):
    error, lines = open_session("EXTERNAL", client=bob, says=["535 5.7.8 unknown subject"])
    assert isinstance(error, smtplib.SMTPAuthenticationError)
    assert error.smtp_error == b"5.7.8 unknown subject"  # with nothing hidden in between
    assert lines == ["AUTH EXTERNAL ="]


def test_the_mechanism_is_in_the_statistics():
    pool = SessionPool(timeout=5)
    with ScriptedServer() as server:
        params = SessionParams(
            credential_id="bob",
            host="127.0.0.1",
            port=server.port,
            security="plain",
            mechanism="LOGIN",
            **PASSWORD,
        )
        automatic = replace(params, credential_id="mary", mechanism="")
        none = replace(automatic, credential_id="site", username="", password="")
        for each in (params, automatic, none):
            with pool.session(each):
                pass
        assert sorted(each.mechanism for each in pool.stats().sessions) == ["", "LOGIN", "PLAIN"]
        pool.close()
