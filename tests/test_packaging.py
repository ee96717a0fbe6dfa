"""What people get who install the package."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires
from importlib.resources import files

import mailpool


def test_smtp_client_does_not_need_django():
    code = "import mailpool.smtp, sys; assert 'django' not in sys.modules, 'Django was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names():
    assert set(mailpool.__all__) == {"close_connections", "stats", "use_tenant"}
    assert all(callable(getattr(mailpool, name)) for name in mailpool.__all__)


def test_everything_is_in_the_package():
    package = files("mailpool")
    for name in (
        "py.typed",
        "templates/admin/mailpool/verify.html",
        "templates/mailpool/credential_form.html",
        "static/mailpool/admin.css",
        "migrations/0001_initial.py",
    ):
        assert package.joinpath(*name.split("/")).is_file(), name


def test_few_dependencies():
    runtime = [line for line in requires("mailpool") if "extra ==" not in line]
    assert {line.split(">")[0].lower() for line in runtime} == {
        "django",
        "cryptography",
        "django-environ",
    }
