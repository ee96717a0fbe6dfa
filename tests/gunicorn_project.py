"""A project for gunicorn, settings and all: one view, which sends."""

import os
import socket

from django.http import HttpResponse
from django.urls import path

from tests.sending_processes import _send
from tests.settings import *  # noqa: F403

ROOT_URLCONF = __name__


def send(request, slug, port):
    """Send as that tenant, tell the test who did it, and answer once the test lets go.

    Until then this worker takes no other request: so as many requests at a time as there are
    workers reach every one of them.
    """
    outcome = _send(slug)
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.sendall(f"{os.getpid()} {outcome}\n".encode())
        wire.recv(1)
    return HttpResponse()


urlpatterns = [path("send/<slug:slug>/<int:port>/", send)]
