"""Optuna Dashboard on the storage of a workspace: for this machine only, and only to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fmnist_search.errors import UserError
from fmnist_search.search.storage import open_storage

HOST = "127.0.0.1"
READING_METHODS = ("GET", "HEAD", "OPTIONS")

WsgiApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def dashboard_server(url: str, port: int) -> WSGIServer:
    """Return a server of Optuna Dashboard for the storage of a URL, which listens already; the caller lets it serve.

    Raises:
        UserError: if the package is not installed, the storage cannot be opened, or the port cannot be used.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise UserError(
            "dashboard: needs the package optuna-dashboard; install it with `pip install 'fmnist-search[dashboard]'`"
        ) from None
    application = read_only(wsgi(open_storage(url, create=False)), (f"{HOST}:{port}", f"localhost:{port}"))
    try:
        return make_server(HOST, port, application, server_class=_Server, handler_class=_QuietHandler)
    except OSError as error:
        raise UserError(f"--port {port}: cannot be used ({error.strerror}); give another") from None


def read_only(application: WsgiApplication, hosts: tuple[str, ...]) -> WsgiApplication:
    """Return an application that passes on only what reads, and only under these names of the host.

    The dashboard could delete a study whose weights and runs stay. A web page whose name is made to refer to this
    machine (DNS rebinding) has another host, so that a browser gives it nothing.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_HOST") not in hosts:
            return _refuse(start_response, "403 Forbidden", f"open http://{hosts[0]}/dashboard on this machine")
        if environ["REQUEST_METHOD"] not in READING_METHODS:
            return _refuse(start_response, "405 Method Not Allowed", "fmnist-search dashboard only shows studies")
        return application(environ, start_response)

    return answer


def _refuse(start_response: Callable[..., Any], status: str, reason: str) -> list[bytes]:
    # The dashboard shows the reason of an error of its API if it is JSON.
    content = f'{{"reason": "{reason}"}}'.encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
    return [content]


class _Server(ThreadingMixIn, WSGIServer):
    """A server that answers while it computes another answer, such as importances."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    """Prints no line for each request."""

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
