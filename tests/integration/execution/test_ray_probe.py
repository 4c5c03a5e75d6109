"""The look at a Ray cluster before it is used: its head is a real one, without any nodes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmnist_search.errors import UserError
from fmnist_search.execution.ray_cluster import probe, read_answer
from fmnist_search.execution.ray_settings import RaySettings

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SERVER = Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"
HOST = "127.0.0.2"
TOKEN = "a" * 64


@contextlib.contextmanager
def head(folder: Path, **environment: str) -> Iterator[str]:
    """Run the server of a head without a node, which takes a second; yield its address."""
    folder.mkdir()
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    places = [f"--log_dir={folder}", f"--session-dir={folder}", "--session-name=test", f"--node-id={'ab' * 28}"]
    server = subprocess.Popen(
        [SERVER, f"--gcs_server_port={port}", f"--node-ip-address={HOST}", *places],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex((HOST, port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield f"{HOST}:{port}"
    finally:
        server.kill()
        server.wait()


def problem(settings: RaySettings) -> str:
    """Return the line about what is wrong with a cluster."""
    with pytest.raises(UserError) as caught:
        read_answer(settings, probe(settings))
    (line,) = caught.value.lines
    return line


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_a_cluster_that_asks_for_no_token_is_used_only_if_that_is_allowed(tmp_path: Path) -> None:
    with head(tmp_path / "head", RAY_AUTH_MODE="disabled") as address:
        assert "asks for no token" in problem(RaySettings(address))
        assert "this machine is no node" in problem(RaySettings(address, allow_no_token=True))


def test_a_cluster_that_asks_for_a_token_gets_that_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with head(tmp_path / "head", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as address:
        assert "asks for a token, and this user has none" in problem(RaySettings(address))
        monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
        assert "refuses the token of this user" in problem(RaySettings(address))
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        file = tmp_path / ".ray" / "auth_token"
        file.parent.mkdir()
        file.write_text(TOKEN)
        assert "this machine is no node" in problem(RaySettings(address))


def test_no_cluster_on_this_machine_is_one_line() -> None:
    with contextlib.suppress(ConnectionError):
        ray._private.services.canonicalize_bootstrap_address_or_die("auto")
        pytest.skip("a cluster runs on this machine")
    assert "'auto' finds no Ray cluster on this machine" in problem(RaySettings())
