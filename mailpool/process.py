"""What a process is to others: where it runs, since when, as what; and whether it still does.

A number alone is not enough: it is given again to later processes, and every container has a
process of the same number.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

from django.utils import timezone

HOST = socket.gethostname()[:253]


@cache
def machine() -> str:
    """Whose process numbers these are: this start of this machine, or of this container.

    Empty where that can't be told: then nobody looks for a process by its number.
    """
    if sys.platform != "linux":
        return HOST[:100]  # no containers that have numbers of their own and the same name
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"[:100]
    except OSError:
        return ""


def birth(pid: int) -> str:
    """When that process was started, in the system's own count; empty if that can't be told."""
    return _stat(pid)[1]


def is_running(pid: int, born: str) -> bool:
    """Whether the process *pid* of this machine is still the one that was *born* then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # somebody else's process is one as well
    state, now = _stat(pid)
    # A zombie has ended: nobody has asked for its exit status yet.
    return state not in ("Z", "X") and (not born or not now or born == now)


def _stat(pid: int) -> tuple[str, str]:
    """The state and the start of a process as Linux tells them; empty elsewhere."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()  # its name, which comes before, may be anything
    return fields[0], fields[19]


def started_at() -> datetime:
    """When this process was started, or now if that can't be told."""
    now = timezone.now()
    if sys.platform == "linux" and (ticks := birth(os.getpid())):
        up = time.clock_gettime(time.CLOCK_BOOTTIME)
        return now - timedelta(seconds=up - int(ticks) / os.sysconf("SC_CLK_TCK"))
    return now


def command() -> str:
    """What this process was started as. No arguments: there may be secrets among them."""
    path = Path(sys.argv[0] if sys.argv else "")
    name = path.parent.name if path.name == "__main__.py" else path.name
    if name in ("", "-c", "-m"):
        name = "python"
    subcommand = sys.argv[1] if len(sys.argv) > 1 else ""
    is_management = name in ("manage.py", "django-admin", "django")
    if is_management and re.fullmatch(r"[a-z][a-z0-9_]*", subcommand):
        name = f"{name} {subcommand}"
    return "".join(char for char in name if char.isprintable())[:100]
