"""What is remembered of a key from one of its sessions to the next."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from mailpool.smtp.params import SessionParams
from mailpool.smtp.tls import Resumable

CAPACITY = 1000  # keys; about seven kilobytes each, most of it the TLS session


@dataclass(slots=True, eq=False)
class KeyMemory:
    """Filled by the sessions of one key, read by the next one. Nothing in it is needed."""

    tls: Resumable | None = None
    """With it a new connection is spared the certificates, and with TLS 1.2 a round trip."""

    single_flight: Literal["untried", "works", "broken"] = "untried"
    """Whether the server has shown that it handles chunks."""

    addresses_end: int = 0
    """How often it was seen to answer a message with an enhanced code about an address (x.1.y)
    without having miscounted."""


class Memories:
    """The memory of each key; the least recently used ones are forgotten.

    By the whole key, like the sessions themselves: one tenant's TLS session never opens a
    connection for another one. Not thread-safe: the pool calls it under its lock.
    """

    def __init__(self) -> None:
        self._by_key: OrderedDict[SessionParams, KeyMemory] = OrderedDict()

    def of(self, params: SessionParams) -> KeyMemory:
        memory = self._by_key.setdefault(params, KeyMemory())
        self._by_key.move_to_end(params)
        while len(self._by_key) > CAPACITY:
            self._by_key.popitem(last=False)
        return memory

    def __len__(self) -> int:
        return len(self._by_key)
