"""Bounds for what a provider answers: how long it may be, how late, and in no disguise.

A hook of requests, which by itself reads to the end, unpacks, and waits for each part anew.
"""

from __future__ import annotations

import io
import time
from contextlib import closing
from typing import Any

from django.utils.translation import gettext as _

# Bytes. Tokens take a few thousand.
LONGEST = 256 * 1024
# Seconds, from the head of the answer to its end.
SECONDS = 15
_PIECE = 16 * 1024


class BadAnswer(Exception):
    """It is not read, or no further. The text, in plain words, has nothing of the answer."""


def ask_plainly(session: Any) -> None:
    """Have *session* ask for answers as they are, and take none that is out of bounds."""
    session.headers["Accept-Encoding"] = "identity"
    session.hooks["response"].append(_bounded)


def _bounded(response: Any, **kwargs: Any) -> Any:
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        # A few bytes may be a great many when they are unpacked.
        response.close()
        raise BadAnswer(_("its answer is compressed, which was not asked for"))
    until = time.monotonic() + SECONDS
    body = bytearray()
    with closing(response.raw) as raw:
        read = getattr(raw, "read1", raw.read)  # as it comes, where urllib3 can
        while piece := read(_PIECE, decode_content=False):
            body += piece
            if len(body) > LONGEST:
                raise BadAnswer(_("its answer is too long"))
            if time.monotonic() > until:
                raise BadAnswer(_("it did not answer in time"))
    response.raw = io.BytesIO(body)
    return response
