"""Fixtures for pytest; loaded by itself where mailpool is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mailpool.testing import Outbox


@pytest.fixture
def mailpool_outbox(db: None) -> Iterator[Outbox]:
    """The messages that the test sends, with the credential that each would have used."""
    from mailpool.testing import capture

    with capture() as outbox:
        yield outbox
