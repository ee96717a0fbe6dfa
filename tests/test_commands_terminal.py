"""Commands as real processes, with pipes, files and arguments that are odd: never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from tests.factories import CredentialFactory, TenantFactory

pytestmark = pytest.mark.django_db(transaction=True)

READING = ["audit", "export", "status", "check", "import --columns", "generate_key", "audit --help"]


def start(command, shell, **env):
    """Run ``$COMMAND`` in a line of the shell, with the database of the tests."""
    name, *args = command.split()
    code = (
        "import sys, django; from django.conf import settings; django.setup(); "
        "from django.core.management import execute_from_command_line as run; "
        f"settings.DATABASES['default']['NAME'] = {str(settings.DATABASES['default']['NAME'])!r}; "
        "run(sys.argv)"
    )
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", **env}
    words = [sys.executable, "-c", code, f"mailpool_{name}", *args]
    return subprocess.run(
        ["bash", "-c", shell.replace("$COMMAND", '"$@"'), "bash", *words],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def no_traceback(ended):
    said = ended.stderr.decode(errors="replace")
    for word in ("Traceback", "Exception ignored", "BrokenPipe", "Error: [Errno"):
        assert word not in said, said
    return said


@pytest.mark.parametrize("command", READING)
def test_nobody_reads_on(command):
    for number in range(30):
        TenantFactory(slug=f"tenant-with-a-name-{number}")
    CredentialFactory.create_batch(5)
    ended = start(command, "$COMMAND | true; exit ${PIPESTATUS[0]}")
    assert no_traceback(ended) == ""
    # 0, where what was read before the reader went away was all of it.
    assert ended.returncode in (0, 1, 141)


@pytest.mark.parametrize("command", ["audit", "export", "generate_key"])
def test_output_that_can_not_be_written(command):
    CredentialFactory()
    ended = start(command, "$COMMAND > /dev/full")
    assert no_traceback(ended) == "No space left on device.\n"
    assert ended.returncode == 1
    assert no_traceback(start(command, "$COMMAND >&-")) == ""
    assert no_traceback(start(command, "$COMMAND 2>&-")) == ""


def test_input_that_is_closed():
    ended = start("import -", "$COMMAND <&-")
    assert "Standard input is closed." in no_traceback(ended)
    assert ended.returncode == 1


def test_an_encoding_that_has_not_all_characters():
    CredentialFactory(tenant__name="Bäcker", server__name="Bäcker")
    ended = start("audit", "$COMMAND", PYTHONIOENCODING="ascii")
    assert no_traceback(ended) == ""
    assert rb"B\xe4cker" in ended.stdout
    ended = start("export", "$COMMAND", PYTHONIOENCODING="ascii")
    assert no_traceback(ended) == "The output is in ascii, which has no '\\xe4'.\n"
    assert ended.returncode == 1


NO_TEXT = "a\udcffb"  # a byte of the command line that is not UTF-8


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("audit", "--tenant"),
        ("audit", "--since"),
        ("check", "--tenant"),
        ("check", "--server"),
        ("check", "--credential"),
        ("import_env", "--name"),
        ("import_env", "--sender"),
    ],
)
def test_an_argument_that_is_no_text(command, option):
    with pytest.raises(CommandError, match=f"{option} is no text"):
        call_command(f"mailpool_{command}", option, NO_TEXT)


def test_a_file_may_be_called_anything(tmp_path):
    path = str(tmp_path / NO_TEXT)
    call_command("mailpool_export", "--output", path)
    with pytest.raises(CommandError, match="exists already"):
        call_command("mailpool_export", "--output", path)
    with pytest.raises(CommandError, match="can't be read"):
        call_command("mailpool_import", path + "2")


@pytest.mark.parametrize("url", [f"smtp+tls://u:p@{NO_TEXT}:587", "smtp+tls://u:p@a%00b:587"])
def test_a_host_that_is_no_text(monkeypatch, url):
    monkeypatch.setenv("EMAIL_URL", url)
    with pytest.raises(CommandError):
        call_command("mailpool_import_env")


@pytest.mark.parametrize("option", ["--since", "--prune-before"])
@pytest.mark.parametrize("when", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00+23:59"])
def test_a_time_that_no_database_has(option, when):
    with pytest.raises(CommandError, match="no time that a database can have"):
        call_command("mailpool_audit", option, when)
