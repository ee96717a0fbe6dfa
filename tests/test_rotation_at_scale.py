"""Keys are rotated on a live site: people change passwords, and the process is killed.

``ROTATION_ROWS`` in the environment makes it larger; ``-s`` shows how fast it was.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time

import pytest
from django.db import connection

from mailpool import rotation
from mailpool.models import Credential
from mailpool.vault import Keyring, generate_key
from tests import processes
from tests.factories import MailServerFactory

ROWS = int(os.environ.get("ROTATION_ROWS", "1500"))
OLD, NEW = generate_key(), generate_key()

ROTATE = f"""
import django; django.setup()
from django.conf import settings
settings.MAILPOOL["ENCRYPTION_KEYS"] = [{NEW!r}, {OLD!r}]
from django.core.management import call_command
"""
STOP_IN_THE_MIDDLE = f"""
from django.db.models import QuerySet
updates, update = [], QuerySet.update
def stop(self, **kwargs):
    updates.append(1)
    if len(updates) == {ROWS // 2}:
        print("now", flush=True)
        input()
    return update(self, **kwargs)
QuerySet.update = stop
"""
RUN = "call_command('mailpool_rotate_keys')"


class Editor(threading.Thread):
    """Somebody who sets passwords all the time."""

    def __init__(self, passwords):
        super().__init__()
        self.passwords = passwords
        self.over = threading.Event()
        self.edits = 0

    def run(self):
        random_row = random.Random(1)
        keys = sorted(self.passwords)
        try:
            while not self.over.wait(0.002):
                row = Credential.objects.get(pk=random_row.choice(keys))
                row.password = f"edit {self.edits}"
                row.save()
                self.passwords[row.pk] = row.password
                self.edits += 1
        finally:
            connection.close()


@pytest.mark.django_db(transaction=True)
def test_nothing_is_lost_by_edits_and_a_kill(settings):
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": [OLD]}
    server = MailServerFactory()
    rows = [
        Credential(server=server, username=f"u{number}", password=f"secret {number}")
        for number in range(ROWS)
    ]
    passwords = {row.pk: row.password for row in rows}
    Credential.objects.bulk_create(rows, batch_size=500)
    settings.MAILPOOL = {**settings.MAILPOOL, "ENCRYPTION_KEYS": [NEW, OLD]}
    old = Keyring([OLD]).newest

    editor = Editor(passwords)
    editor.start()
    try:
        killed = processes.start(
            ROTATE + STOP_IN_THE_MIDDLE + RUN, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with killed:
            assert killed.stdout.readline() == "now\n"
            killed.send_signal(signal.SIGKILL)
            assert killed.wait(30) == -signal.SIGKILL
        left = rotation.key_usage()[old]
        assert ROWS // 4 < left < ROWS
        began = time.perf_counter()
        processes.run(ROTATE + RUN)
        seconds = time.perf_counter() - began
    finally:
        editor.over.set()
        editor.join()
    assert editor.edits > 5
    assert rotation.key_usage()[old] == 0
    assert rotation.unreadable() == []
    assert {row.pk: row.password for row in Credential.objects.all()} == passwords
    print(f"{left} rows in {seconds:.1f} s with a new process, {editor.edits} edits meanwhile")
