"""A server in a process of its own: announced once it answers, and ended by Ctrl-C without its traceback."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from fmnist_search.parent_process import end_with_parent

POLL_SECONDS, ANSWER_SECONDS = 0.2, 5.0
GRACE_SECONDS = 15.0
"""A server that has not ended so long after SIGTERM is killed."""


def run_server(command: Sequence[str], health_url: str, on_ready: Callable[[], None]) -> int:
    """Run a server until it ends, and return its exit code; call `on_ready` once `health_url` answers.

    SIGINT, SIGTERM and SIGHUP end it. Its output goes to stderr.

    Raises:
        KeyboardInterrupt: after one of these signals, when the server has ended.
    """
    # A session of its own: Ctrl-C would reach each of its processes, and some of them print a traceback then. If this
    # process is killed, it cannot end them, and Linux tells the server, which ends its own.
    end = functools.partial(end_with_parent, signal.SIGTERM)
    server = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True, preexec_fn=end)
    with _interrupted_by(signal.SIGINT, signal.SIGTERM, signal.SIGHUP), _ended(server):
        while server.poll() is None and not _answers(health_url):
            time.sleep(POLL_SECONDS)
        if server.poll() is None:
            on_ready()
        return server.wait()


def _answers(url: str) -> bool:
    import urllib.request  # this takes a while, and every command imports this module

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine
    try:
        with opener.open(url, timeout=ANSWER_SECONDS):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _ended(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """End all processes of a server when the context is left."""
    try:
        yield
    finally:
        _send_signal(server, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_SECONDS)
        _send_signal(server, signal.SIGKILL)


def _send_signal(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, number)


@contextlib.contextmanager
def _interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """Raise KeyboardInterrupt at the first of these signals, and ignore further ones: the server is ended once."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    caught = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # such as by `nohup`
    before = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
