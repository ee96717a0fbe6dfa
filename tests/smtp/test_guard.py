"""Where a guarded connection may go, and that it goes nowhere else.

Some tests answer for the name server: what a name leads to, and that it leads somewhere else at the
second look, is the attack, and no real name server can be made to do that here. The sockets are
real: the server that must not be reached is there and counts.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpool.exceptions import ServerNotAllowed
from mailpool.guard import MAIL_PORTS, Guard, why_not_public
from mailpool.smtp import Envelope, SessionParams, SessionPool, Transmitter
from mailpool.smtp.handshake import Handshake
from tests.scripted import ScriptedServer

HOST = "mail.bob.example"

PUBLIC = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",  # the way from a network that has IPv6 alone
]
NOT_PUBLIC = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.0": "private",
    "10.255.255.255": "private",
    "100.64.0.0": "CGNAT",
    "100.127.255.255": "CGNAT",
    "127.0.0.1": "loopback",
    "127.255.255.255": "loopback",
    "169.254.169.254": "link-local",  # where clouds hand out their secrets
    "172.16.0.0": "private",
    "172.31.255.255": "private",
    "192.0.0.192": "reserved",
    "192.0.2.1": "documentation",
    "192.88.99.1": "6to4",
    "192.168.0.0": "private",
    "192.168.255.255": "private",
    "198.18.0.0": "benchmarks",
    "198.19.255.255": "benchmarks",
    "198.51.100.1": "documentation",
    "203.0.113.1": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.0": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::1%lo": "loopback",
    "::2": "reserved",
    "::127.0.0.1": "reserved",  # IPv4-compatible
    "::ffff:0:127.0.0.1": "reserved",  # IPv4-translated
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.1.2.3": "private",
    "::ffff:100.64.0.1": "CGNAT",
    "64:ff9b::127.0.0.1": "loopback",
    "64:ff9b::10.1.2.3": "private",
    "64:ff9b::169.254.169.254": "link-local",
    "64:ff9b:1::8.8.8.8": "reserved",  # a network's own NAT64
    "100::1": "reserved",
    "2001::1": "Teredo",
    "2001:0:7f00:1::1": "Teredo",
    "2001:0:4136:e378:8000:63bf:80ff:fffe": "Teredo",
    "2001:2::1": "reserved",
    "2001:20::1": "reserved",
    "2001:db8::1": "documentation",
    "2002:7f00:1::": "6to4",
    "2002:a01:203::1": "6to4",
    "2002:808:808::1": "6to4",
    "3fff::1": "documentation",
    "4000::1": "reserved",
    "5f00::1": "reserved",
    "fc00::1": "private",
    "fd00:ec2::254": "private",
    "fdff::1": "private",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "febf::1": "link-local",
    "fec0::1": "reserved",  # site-local
    "ff02::1": "multicast",
    "": "no IP address",
    "localhost": "no IP address",
    "2130706433": "no IP address",
    "0x7f000001": "no IP address",
    "017700000001": "no IP address",
    "127.1": "no IP address",
    "010.0.0.1": "no IP address",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert why_not_public(address) == ""
    Guard().check(HOST, 25, [address])


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address):
    assert NOT_PUBLIC[address] in why_not_public(address)
    with pytest.raises(ServerNotAllowed):
        Guard().check(HOST, 25, [address])


SPECIAL = (
    *("is_private", "is_loopback", "is_link_local", "is_multicast", "is_reserved"),
    *("is_unspecified", "is_site_local", "sixtofour", "teredo"),
)


@given(st.one_of(st.ip_addresses(), st.ip_addresses(network="::/3"), st.ip_addresses(v=4)))
def test_what_python_knows_to_be_special_is_never_public(ip):
    if why_not_public(str(ip)) or ip in ipaddress.ip_network("64:ff9b::/96"):
        return
    plain = getattr(ip, "ipv4_mapped", None) or ip
    special = [name for name in SPECIAL if getattr(plain, name, None)]
    assert special == []


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_judged_like_a_plain_one(ip):
    for prefix in ("::ffff:", "64:ff9b::"):
        assert why_not_public(f"{prefix}{ip}") == why_not_public(str(ip))


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "fd00::1"])
def test_networks_that_are_allowed(address):
    Guard(networks=("10.1.0.0/16", "fd00::/8")).check(HOST, 25, [address, "1.1.1.1"])
    with pytest.raises(ServerNotAllowed):
        Guard(networks=("10.2.0.0/16", "fd00::/127")).check(HOST, 25, ["10.1.2.3", "fd00::2"])


def test_ports():
    for port in MAIL_PORTS:
        Guard().check(HOST, port, ["1.1.1.1"])
    for port in (1, 22, 80, 443, 6379, 11211):
        with pytest.raises(ServerNotAllowed, match=rf"on port {port}.*25, 465, 587, 2525"):
            Guard().check(HOST, port, ["1.1.1.1"])
    Guard(ports=(10025,)).check(HOST, 10025, ["1.1.1.1"])
    with pytest.raises(ServerNotAllowed, match="no port"):
        Guard(ports=()).check(HOST, 25, ["1.1.1.1"])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"networks": (each,)} for each in ("x", "", "10.0.0.1/8", "10.0.0.0/33", 10, None)),
        *({"ports": (each,)} for each in ("25", 0, -1, 65536, True, 25.0, None)),
    ],
)
def test_guards_that_can_not_be(wrong):
    with pytest.raises(ValueError):
        Guard(**wrong)


def test_a_mix_of_addresses_is_refused_as_a_whole():
    for addresses in (["1.1.1.1", "10.0.0.1"], ["10.0.0.1", "1.1.1.1"]):
        with pytest.raises(ServerNotAllowed, match=r"10\.0\.0\.1.*a mistake or an attack"):
            Guard().check(HOST, 25, addresses)
    with pytest.raises(ServerNotAllowed) as caught:
        Guard().check(HOST, 25, ["10.0.0.1", "127.0.0.1"])
    assert "attack" not in str(caught.value)


# At the socket


@pytest.fixture
def server():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def params(server):
    """To *server*, which is on loopback, and at a port that is allowed."""
    return SessionParams(
        credential_id="bob",
        host="127.0.0.1",
        port=server.port,
        security="plain",
        timeout=5,
        guard=Guard(ports=(server.port,)),
    )


@pytest.fixture
def names(monkeypatch):
    """What the name server says, one list of addresses for each time that it is asked."""
    answers: list[list[str]] = []
    asked: list[str] = []
    real = socket.getaddrinfo

    def answer(host, port, *args, **kwargs):
        if host != HOST:
            return real(host, port, *args, **kwargs)
        asked.append(host)
        return [
            found for address in answers[len(asked) - 1] for found in real(address, port, **kwargs)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    answer.answers, answer.asked = answers, asked
    return answer


def was_reached(server: ScriptedServer) -> bool:
    """Whether anybody connected: they are counted in order, and this call is the last of them."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
        assert sock.recv(3) == b"220"
    return server.connections > 1


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1.2.3",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "017700000001",
        "0",
        "0.0.0.0",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "\u24dbocalhost",
        "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
        "127\u30020\u30020\u30021",
        "::1",
        "::1%lo",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
    ],
)
def test_no_spelling_of_this_machine_is_connected_to(server, params, host):
    # Not every system reads every spelling, or has IPv6; none may get there.
    with pytest.raises((ServerNotAllowed, socket.gaierror)):
        Handshake(replace(params, host=host)).run()
    assert not was_reached(server)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "localhost"])
def test_without_a_guard_they_are(server, params, host):
    handshake = Handshake(replace(params, host=host, guard=None))
    handshake.run()
    handshake.close()
    assert was_reached(server)


def test_a_name_that_leads_inside(server, params, names):
    names.answers.append(["127.0.0.1"])
    with pytest.raises(ServerNotAllowed, match=rf"{HOST}.*127\.0\.0\.1.*loopback"):
        Handshake(replace(params, host=HOST)).run()
    assert not was_reached(server)


@pytest.mark.parametrize("first", ["192.0.2.1", "127.0.0.1"])
def test_one_address_inside_among_others(server, params, names, first):
    guard = Guard(networks=("192.0.2.0/24",), ports=(server.port,))
    names.answers.append(sorted(["192.0.2.1", "127.0.0.1"], key=lambda each: each != first))
    with pytest.raises(ServerNotAllowed, match="none of them is used"):
        Handshake(replace(params, host=HOST, guard=guard)).run()
    assert not was_reached(server)


def test_one_look_up_is_what_is_checked_and_what_is_used(server, params, names):
    """A name server that says something else at the second look is not asked a second time."""
    guard = Guard(networks=("127.0.0.1/32",), ports=(server.port,))
    names.answers += [["127.0.0.1"], ["127.0.0.2"]]
    handshake = Handshake(replace(params, host=HOST, guard=guard))
    handshake.run()
    assert handshake.wire.sock.getpeername() == ("127.0.0.1", server.port)
    assert names.asked == [HOST]
    handshake.close()


def test_every_connection_is_checked(server, params, names):
    guard = Guard(networks=("127.0.0.1/32",), ports=(server.port,))
    params = replace(params, host=HOST, guard=guard)
    names.answers += [["127.0.0.1"], ["127.0.0.2"]]
    pool = SessionPool(timeout=5)
    transmitter = Transmitter(pool)
    envelope = Envelope("bob@example.com", ("a@example.com",), b"Subject: hello\r\n\r\nhello\r\n")
    transmitter.send(params, envelope)
    transmitter.release()
    pool.close()
    with pytest.raises(ServerNotAllowed, match=r"127\.0\.0\.2"):
        transmitter.send(params, envelope)
    assert len(server.accepted) == 1
    assert names.asked == [HOST, HOST]


def test_a_port_that_is_no_mail_servers(server, params):
    guard = Guard(networks=("127.0.0.0/8",))
    with pytest.raises(ServerNotAllowed, match=f"on port {server.port}"):
        Handshake(replace(params, guard=guard)).run()
    assert not was_reached(server)


def test_whoever_goes_on_after_a_refusal_has_nothing_to_connect_to(server, params):
    (_, resolve), (_, connect) = [
        step for step, _ in zip(Handshake(params).steps(), range(2), strict=False)
    ]
    with pytest.raises(ServerNotAllowed):
        resolve()
    with pytest.raises(TimeoutError):
        connect()
    assert not was_reached(server)
