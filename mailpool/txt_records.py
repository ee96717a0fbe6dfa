"""TXT records, asked for by dnspython: the extra ``mailpool[dns]``, loaded when needed."""

from __future__ import annotations

from importlib.util import find_spec

from mailpool import conf
from mailpool.exceptions import MailpoolError

# Seconds for all of it, and for each question to a name server.
LIFETIME = 6.0
EACH = 2.0


class LookupFailed(MailpoolError):
    """Nobody could say what there is: that is not the same as nothing."""


def is_installed() -> bool:
    """Whether the extra ``mailpool[dns]`` is there."""
    return find_spec("dns") is not None and find_spec("dns.resolver") is not None


def look_up(name: str) -> list[bytes]:
    """The TXT records at *name*, each as one piece; none if there is no such name.

    ``LookupFailed`` where that can't be found out, ``ImproperlyConfigured`` for name servers in the
    settings that are none. Takes ``LIFETIME`` at the most.
    """
    servers = conf.sender_dns_servers()
    if not is_installed():
        raise LookupFailed("The library for DNS is missing: pip install mailpool[dns].")
    import dns.exception
    import dns.name
    import dns.nameserver
    import dns.rdatatype
    import dns.resolver

    try:
        resolver = dns.resolver.Resolver(configure=servers is None)
        if servers is not None:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(*each) for each in servers]
        resolver.timeout, resolver.lifetime = EACH, LIFETIME
        # With the final dot: this name, and not one below the domains that this machine searches.
        where = dns.name.from_text(name, origin=dns.name.root)
        answer = resolver.resolve(where, dns.rdatatype.TXT, search=False, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        return []
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise LookupFailed(f"{name}: {type(error).__name__}: {error}") from None
    return [b"".join(record.strings) for record in answer.rrset or ()]
