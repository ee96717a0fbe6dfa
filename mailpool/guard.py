"""``Guard``: where a connection to somebody else's server may go. Opens nothing, looks up nothing.

Whoever may name a host can name one in the operator's own network: the check is made on the
addresses that the name was found at, by the connection that is about to use them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from mailpool.exceptions import ServerNotAllowed

MAIL_PORTS = (25, 465, 587, 2525)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA's special-purpose registries. Not Python's ``is_global``: what it says depends on the
# release, and multicast is global to it.
_SPECIAL: list[tuple[_Network, str]] = [
    (ipaddress.ip_network(network), kind)
    for network, kind in {
        "0.0.0.0/8": "an unspecified address",
        "10.0.0.0/8": "a private address",
        "100.64.0.0/10": "an address within a provider's network (CGNAT)",
        "127.0.0.0/8": "this machine itself (loopback)",
        "169.254.0.0/16": "a link-local address",
        "172.16.0.0/12": "a private address",
        "192.0.0.0/24": "a reserved address",
        "192.0.2.0/24": "an address for documentation",
        "192.88.99.0/24": "a relay of tunnels (6to4)",
        "192.168.0.0/16": "a private address",
        "198.18.0.0/15": "an address for benchmarks",
        "198.51.100.0/24": "an address for documentation",
        "203.0.113.0/24": "an address for documentation",
        "224.0.0.0/4": "a multicast address",
        "240.0.0.0/4": "a reserved address",
        # Refused whatever is embedded in them: no mail server is reached through these.
        "2001::/32": "a tunnel (Teredo)",
        "2002::/16": "a tunnel (6to4)",
        "2001::/23": "a reserved address",
        "2001:db8::/32": "an address for documentation",
        "3fff::/20": "an address for documentation",
        "::/128": "an unspecified address",
        "::1/128": "this machine itself (loopback)",
        "fc00::/7": "a private address",
        "fe80::/10": "a link-local address",
        "ff00::/8": "a multicast address",
    }.items()
]
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # the only part of IPv6 that is handed out
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def why_not_public(address: str) -> str:
    """What kind of address *address* is instead of a public one; empty for one that is public."""
    try:
        ip = _parse(address)
    except ValueError:
        return "no IP address"
    for network, kind in _SPECIAL:
        if ip in network:
            return kind
    return "" if ip.version == 4 or ip in _GLOBAL_UNICAST else "a reserved address"


@dataclass(frozen=True, slots=True)
class Guard:
    """Lets connections through to public addresses and to *networks* (CIDR), on *ports* only.

    ``ValueError`` for what is no network or no port; it says which one, and not what it is.
    """

    networks: tuple[str, ...] = ()
    ports: tuple[int, ...] = MAIL_PORTS

    def __post_init__(self) -> None:
        for number, network in enumerate(self.networks, start=1):
            try:
                _network(network)
            except ValueError:
                raise ValueError(
                    f"number {number} is not a network such as '10.1.0.0/16'"
                ) from None
        for number, port in enumerate(self.ports, start=1):
            if type(port) is not int or not 1 <= port <= 65535:
                raise ValueError(f"number {number} is not a port, a whole number from 1 to 65535")

    def check(self, host: str, port: int, addresses: Iterable[str]) -> None:
        """Raise ``ServerNotAllowed`` unless *port* and each of the *addresses* of *host* will do.

        One that will not rules out the others too: such a mix is how a name is made to lead
        somewhere else at the second look.
        """
        if port not in self.ports:
            raise ServerNotAllowed(
                f"{host!r} is not connected to on port {port}: a tenant's server is reached on "
                f"{', '.join(map(str, self.ports)) or 'no port'} only "
                "(MAILPOOL['TENANT_SERVER_PORTS'])."
            )
        addresses = list(addresses)
        refused = {address: kind for address in addresses if (kind := self._why_not(address))}
        if not refused:
            return
        address, kind = next(iter(refused.items()))
        found = repr(host) if host == address else f"{host!r} was found at {address}, which"
        mixed = ""
        if any(each not in refused for each in addresses):
            mixed = (
                " It has other addresses as well; none of them is used, for such a mix is a "
                "mistake or an attack."
            )
        raise ServerNotAllowed(
            f"{found} is {kind}, so it is not connected to: a tenant's server has to be at a "
            f"public address, or in one of MAILPOOL['TENANT_SERVER_NETWORKS'].{mixed}"
        )

    def _why_not(self, address: str) -> str:
        kind = why_not_public(address)
        if not kind:
            return ""
        try:
            ip = _parse(address)
        except ValueError:
            return kind
        return "" if any(ip in _network(network) for network in self.networks) else kind


def _parse(address: str) -> _Address:
    """The address that a packet to *address* ends up at, without a zone."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:  # how a machine without IPv4 reaches servers that have nothing else
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        return ip.ipv4_mapped or ip
    return ip


def _network(text: object) -> _Network:
    if not isinstance(text, str):  # a number would be read as an address
        raise ValueError("not a text")
    return ipaddress.ip_network(text)
