"""Other processes, on the test's own database."""

from __future__ import annotations

import os
import subprocess
import sys

from django.db import connection


def start(code: str, *, by: tuple[str, ...] = ("-c",), **kwargs) -> subprocess.Popen:
    """Run *code* in a Python of its own, with the test database in the configured one's place.

    *by* is what Python is started with, ahead of the code.
    """
    name = connection.settings_dict["NAME"]
    url = os.environ.get("DATABASE_URL", "sqlite:///x")
    scheme_and_host = url.rsplit("/", 1)[0] if "sqlite" not in url else "sqlite:///"
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DATABASE_URL": f"{scheme_and_host}/{name}" if "sqlite" not in url else f"sqlite:///{name}",
    }
    return subprocess.Popen([sys.executable, *by, code], env=environment, text=True, **kwargs)


def run(code: str) -> None:
    assert start(code).wait(60) == 0
