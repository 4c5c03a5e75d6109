"""The files of a dataset: verified, cached as a whole or not at all, read from a user's folder or downloaded."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import logging
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import FashionMNIST

from fmnist_search.data.files import TEST_IMAGES, TRAIN_IMAGES, TRAIN_LABELS, DataSource, read_verified_file
from fmnist_search.data.loading import load_images
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import FASHION_MNIST, FILE_NAMES
from fmnist_search.recipe.groups import Data

SYSTEM_PACKAGE = Path("/usr/share/datasets/fashion-mnist")


def offline_source(cache: Path, folder: Path | None = None) -> DataSource:
    return DataSource(cache, folder, download=False)


def read_labels(source: DataSource) -> bytes:
    return read_verified_file(FASHION_MNIST, TRAIN_LABELS, source)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------- the cache


def test_the_first_use_fills_the_cache_and_the_next_reads_only_the_cache(
    tmp_path: Path, system_package: Path, file_contents: dict[str, bytes]
) -> None:
    cache = tmp_path / "cache"
    assert not cache.exists()
    assert read_labels(offline_source(cache)) == file_contents[TRAIN_LABELS]
    assert read_tree(cache) == {f"fashion-mnist/{TRAIN_LABELS}": file_contents[TRAIN_LABELS]}
    (system_package / f"{TRAIN_LABELS}.gz").unlink()
    assert read_labels(offline_source(cache)) == file_contents[TRAIN_LABELS]


def flip_bit(content: bytes) -> bytes:
    return content[:5_000] + bytes([content[5_000] ^ 1]) + content[5_001:]


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "header alone": lambda content: content[:8],
    "half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "one bit flipped": flip_bit,
}
each_corruption = pytest.mark.parametrize("damage", CORRUPTIONS.values(), ids=CORRUPTIONS)


@each_corruption
def test_a_damaged_file_in_the_cache_is_replaced(
    damage: Callable[[bytes], bytes], tmp_path: Path, system_package: Path, file_contents: dict[str, bytes]
) -> None:
    cached = tmp_path / "cache" / "fashion-mnist" / TRAIN_LABELS
    cached.parent.mkdir(parents=True)
    cached.write_bytes(damage(file_contents[TRAIN_LABELS]))
    assert read_labels(offline_source(tmp_path / "cache")) == file_contents[TRAIN_LABELS]
    assert cached.read_bytes() == file_contents[TRAIN_LABELS]


@each_corruption
def test_a_damaged_file_in_the_cache_is_not_used_if_there_is_no_other(
    damage: Callable[[bytes], bytes], tmp_path: Path, no_system_package: Path, file_contents: dict[str, bytes]
) -> None:
    cached = tmp_path / "cache" / "fashion-mnist" / TRAIN_LABELS
    cached.parent.mkdir(parents=True)
    cached.write_bytes(damage(file_contents[TRAIN_LABELS]))
    with pytest.raises(UserError, match=FASHION_MNIST.system_package):
        read_labels(offline_source(tmp_path / "cache"))


def test_a_damaged_file_in_the_system_package_is_not_used(
    tmp_path: Path, system_package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = system_package / f"{TRAIN_LABELS}.gz"
    package.write_bytes(package.read_bytes()[:-100])
    with pytest.raises(UserError, match=FASHION_MNIST.system_package):
        read_labels(offline_source(tmp_path / "cache"))
    assert str(package) in caplog.text
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    tmp_path: Path, system_package: Path, file_contents: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    # A file in place of the folder fails for root too, permissions do not.
    (tmp_path / "file").write_bytes(b"")
    assert read_labels(offline_source(tmp_path / "file" / "cache")) == file_contents[TRAIN_LABELS]
    assert "cannot be written" in caplog.text


def test_a_failed_write_to_the_cache_leaves_no_temporary_file(
    tmp_path: Path, system_package: Path, file_contents: dict[str, bytes]
) -> None:
    in_the_way = tmp_path / "cache" / "fashion-mnist" / TRAIN_LABELS
    in_the_way.mkdir(parents=True)
    assert read_labels(offline_source(tmp_path / "cache")) == file_contents[TRAIN_LABELS]
    assert read_tree(tmp_path / "cache") == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_without_write_permission_is_only_a_warning(
    tmp_path: Path, system_package: Path, file_contents: dict[str, bytes]
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    assert read_labels(offline_source(cache)) == file_contents[TRAIN_LABELS]
    assert read_tree(cache) == {}


def test_processes_that_start_together_all_read_complete_files(
    tmp_path: Path, file_contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "share" / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    # The larger the file, the longer a writer that is not atomic would show a part of it.
    (folder / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(file_contents[TEST_IMAGES], 1))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "share"))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fmnist_search.data.loading"])
    cache = tmp_path / "cache"
    with ProcessPoolExecutor(3, mp_context=processes) as executor:
        futures = [
            executor.submit(read_verified_file, FASHION_MNIST, TEST_IMAGES, offline_source(cache)) for _ in range(6)
        ]
        assert all(future.result() == file_contents[TEST_IMAGES] for future in futures)
    assert read_tree(cache) == {f"fashion-mnist/{TEST_IMAGES}": file_contents[TEST_IMAGES]}


def test_readers_never_see_a_partial_file(
    tmp_path: Path, system_package: Path, file_contents: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    cached = cache / "fashion-mnist" / TRAIN_LABELS
    wrong: list[int] = []

    def use_and_forget() -> None:
        for _ in range(25):
            if read_labels(offline_source(cache)) != file_contents[TRAIN_LABELS]:
                wrong.append(1)
            cached.unlink(missing_ok=True)

    with caplog.at_level(logging.WARNING):
        threads = [threading.Thread(target=use_and_forget) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # Threads delete files that others are about to open; every file that they do open must be complete.
    assert (wrong, [message for message in caplog.messages if "No such file" not in message]) == ([], [])


# -------------------------------------------------------------------------- a folder of the user's


@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
def test_a_user_folder_may_have_the_layout_of_torchvision_or_only_the_files(
    below: str, packed: bool, tmp_path: Path, no_system_package: Path, file_contents: dict[str, bytes]
) -> None:
    folder = tmp_path / "mine" / below
    folder.mkdir(parents=True)
    content = file_contents[TRAIN_LABELS]
    file = folder / (f"{TRAIN_LABELS}.gz" if packed else TRAIN_LABELS)
    file.write_bytes(gzip.compress(content) if packed else content)
    before = read_tree(tmp_path)
    assert read_labels(offline_source(tmp_path / "cache", tmp_path / "mine")) == content
    assert read_tree(tmp_path) == before, "the user's folder is only read, and nothing is cached"


@each_corruption
def test_a_damaged_file_in_a_user_folder_is_an_error_that_names_it(
    damage: Callable[[bytes], bytes], tmp_path: Path, file_contents: dict[str, bytes], source: DataSource
) -> None:
    file = tmp_path / TRAIN_LABELS
    file.write_bytes(damage(file_contents[TRAIN_LABELS]))
    with pytest.raises(UserError) as caught:
        # The cache of `source` has an intact file, which must not hide the damaged one.
        read_labels(DataSource(source.cache, tmp_path))
    (line,) = caught.value.lines
    assert line.startswith(f"{file}: ")


def test_a_gzip_file_with_trailing_bytes_is_an_error_that_names_it(
    tmp_path: Path, file_contents: dict[str, bytes]
) -> None:
    file = tmp_path / f"{TRAIN_LABELS}.gz"
    file.write_bytes(gzip.compress(file_contents[TRAIN_LABELS]) + b"and so on")
    with pytest.raises(UserError) as caught:
        read_labels(offline_source(tmp_path / "cache", tmp_path))
    assert str(file) in str(caught.value)


@functools.cache
def gzip_cached(content: bytes) -> bytes:
    return gzip.compress(content)


@settings(max_examples=40)
@given(data=st.data())
def test_a_gzip_file_changed_anywhere_is_an_error_or_the_right_content(
    data: st.DataObject, file_contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    packed = gzip_cached(file_contents[TRAIN_LABELS])
    position = data.draw(st.integers(0, 30) | st.integers(0, len(packed) - 1))
    damaged = packed[:position]
    if data.draw(st.booleans()):
        damaged += bytes([packed[position] ^ data.draw(st.integers(1, 255))]) + packed[position + 1 :]
    folder = tmp_path_factory.mktemp("folder")
    (folder / f"{TRAIN_LABELS}.gz").write_bytes(damaged)
    try:
        found = read_labels(offline_source(folder / "cache", folder))
    except UserError as error:
        found = str(error).encode()
    # Some bytes, such as the date in the header, change nothing.
    assert found == file_contents[TRAIN_LABELS] or found.startswith(str(folder).encode())


def test_a_user_folder_without_the_files_is_an_error_that_names_it(tmp_path: Path, source: DataSource) -> None:
    with pytest.raises(UserError) as caught:
        read_labels(DataSource(source.cache, tmp_path / "mine"))
    (line,) = caught.value.lines
    assert line.startswith(f"{tmp_path / 'mine'}: ")
    assert TRAIN_LABELS in line


# -------------------------------------------------------------------------------------- no source


def test_without_any_source_the_error_names_the_package(tmp_path: Path, no_system_package: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_images(Data(), offline_source(tmp_path / "cache"))
    (line,) = caught.value.lines
    assert f"apt-get install {FASHION_MNIST.system_package}" in line
    assert str(tmp_path / "cache") in line
    assert "downloaded" not in line


@pytest.mark.skipif(not SYSTEM_PACKAGE.is_dir(), reason="needs the system's dataset package")
def test_an_empty_xdg_data_dirs_means_its_default(
    tmp_path: Path, file_contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The XDG base directory specification: "either not set or empty".
    monkeypatch.setenv("XDG_DATA_DIRS", "")
    monkeypatch.chdir(tmp_path)
    assert read_labels(offline_source(tmp_path / "cache")) == file_contents[TRAIN_LABELS]


# ------------------------------------------------------------------------------------ the download


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def mirror_folder(tmp_path_factory: pytest.TempPathFactory, file_contents: dict[str, bytes]) -> Path:
    """The files as a server offers them."""
    folder = tmp_path_factory.mktemp("mirror")
    for name, content in file_contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1, mtime=0))
    return folder


StartServer = Callable[[Path], None]


@pytest.fixture
def start_server(no_system_package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartServer]:
    """Return a function that serves a folder on this machine and makes torchvision download from it."""
    servers: list[ThreadingHTTPServer] = []

    def start(folder: Path) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        redirect_download(server.server_address[1], monkeypatch)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def redirect_download(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def set_expected_checksums(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision expect the checksums of these files; compressed here, they differ from the published ones."""
    sums = [
        (f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes(), usedforsecurity=False).hexdigest())
        for name in FILE_NAMES
    ]
    monkeypatch.setattr(FashionMNIST, "resources", sums)


def mirror_with_replaced_file(mirror_folder: Path, folder: Path, name: str, content: bytes) -> Path:
    """Make a copy of the mirror with one file replaced, and return its folder."""
    folder.mkdir()
    for file in mirror_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / f"{name}.gz").unlink()
    (folder / f"{name}.gz").write_bytes(content)
    return folder


def test_files_that_are_not_found_are_downloaded_once_and_cached(
    start_server: StartServer,
    mirror_folder: Path,
    tmp_path: Path,
    file_contents: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start_server(mirror_folder)
    set_expected_checksums(mirror_folder, monkeypatch)
    cache = tmp_path / "cache"
    assert read_verified_file(FASHION_MNIST, TRAIN_IMAGES, DataSource(cache)) == file_contents[TRAIN_IMAGES]
    assert read_tree(cache) == {f"fashion-mnist/{name}": content for name, content in file_contents.items()}
    assert read_labels(offline_source(cache)) == file_contents[TRAIN_LABELS]


def test_a_truncated_download_is_not_used(
    start_server: StartServer, mirror_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = (mirror_folder / f"{TRAIN_IMAGES}.gz").read_bytes()[:100_000]
    start_server(mirror_with_replaced_file(mirror_folder, tmp_path / "served", TRAIN_IMAGES, cut))
    set_expected_checksums(mirror_folder, monkeypatch)
    with pytest.raises(UserError) as caught:
        read_labels(DataSource(tmp_path / "cache"))
    assert f"apt-get install {FASHION_MNIST.system_package}" in str(caught.value)
    assert "could not be downloaded" in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_an_altered_download_that_torchvision_accepts_is_not_used(
    start_server: StartServer,
    mirror_folder: Path,
    tmp_path: Path,
    file_contents: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = gzip.compress(flip_bit(file_contents[TRAIN_LABELS]), 1, mtime=0)
    served = mirror_with_replaced_file(mirror_folder, tmp_path / "served", TRAIN_LABELS, wrong)
    start_server(served)
    set_expected_checksums(served, monkeypatch)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="could not be downloaded"):
        read_labels(DataSource(cache))
    assert f"fashion-mnist/{TRAIN_LABELS}" not in read_tree(cache)
    assert read_verified_file(FASHION_MNIST, TRAIN_IMAGES, offline_source(cache)) == file_contents[TRAIN_IMAGES]


def test_a_server_without_the_files_is_an_error(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    start_server(tmp_path / "served")
    with pytest.raises(UserError, match="could not be downloaded"):
        read_labels(DataSource(tmp_path / "cache"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.7\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>Please log in</html>",
    ],
    ids=["nothing", "another protocol", "cut off", "cut off in a chunk", "a login page"],
)
def test_a_broken_answer_of_the_server_is_a_user_error(
    answer: bytes, tmp_path: Path, no_system_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_requests() -> None:
            # Closing the server ends `accept` with an OSError.
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65_536)
                        connection.sendall(answer)

        thread = threading.Thread(target=answer_requests, daemon=True)
        thread.start()
        redirect_download(server.getsockname()[1], monkeypatch)
        try:
            with pytest.raises(UserError, match="could not be downloaded"):
                read_labels(DataSource(tmp_path / "cache"))
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert not (tmp_path / "cache").exists()


def test_without_a_network_the_error_names_the_package(
    tmp_path: Path, no_system_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    redirect_download(port, monkeypatch)
    with pytest.raises(UserError, match=f"apt-get install {FASHION_MNIST.system_package}"):
        read_labels(DataSource(tmp_path / "cache"))
