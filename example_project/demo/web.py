"""A small server for the demo's pages: threads, static files, nothing to configure."""

from __future__ import annotations

from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

from demo.mailhost import MailHost

host: MailHost | None = None  # the embedded mail host, for the page that shows its folders


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *args) -> None:
        """The terminal stays as it is."""


class _StaticFiles(StaticFilesHandler):
    """Django's handler of static files, outside of DEBUG too: this is a demo on loopback."""

    def serve(self, request):
        from django.contrib.staticfiles.views import serve

        return serve(request, self.file_path(request.path), insecure=True)


def listen(port: int) -> WSGIServer:
    """The web server, listening; ``serve_forever()`` answers."""
    application = _StaticFiles(get_wsgi_application())
    return make_server("127.0.0.1", port, application, _Server, _QuietHandler)
