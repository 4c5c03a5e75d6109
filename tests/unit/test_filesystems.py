"""SQLite files on network file systems are refused, each with its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from fmnist_search.filesystems import network_file_problems, network_file_system
from fmnist_search.workspace import Workspace


class Mount(NamedTuple):
    mountpoint: str
    fstype: str


MOUNTS = [
    Mount("/", "ext4"),
    Mount("/home", "autofs"),
    Mount("/home", "nfs4"),
    Mount("/home/local", "ext4"),
    Mount("/mnt/cloud", "fuse.sshfs"),
    Mount("/mnt/disk", "fuse.ntfs-3g"),
    Mount("/lustre", "lustre"),
    Mount("/share", "CIFS"),
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/project/optuna.db", None),
        ("/home/me/project/optuna.db", "nfs4"),
        ("/home/local/optuna.db", None),
        ("/homework/optuna.db", None),
        ("/mnt/cloud/optuna.db", "sshfs"),
        ("/mnt/disk/optuna.db", None),
        ("/lustre/me/optuna.db", "lustre"),
        ("/share/optuna.db", "cifs"),
    ],
)
def test_the_file_system_is_that_of_the_innermost_and_latest_mount(path: str, kind: str | None) -> None:
    assert network_file_system(Path(path), MOUNTS) == kind


def test_a_link_to_a_network_file_system_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/lustre/me")
    assert network_file_system(tmp_path / "link" / "optuna.db", MOUNTS) == "lustre"


def test_the_folder_of_a_test_is_local(tmp_path: Path) -> None:
    assert network_file_system(tmp_path) is None


def test_each_file_has_a_line_with_its_remedy() -> None:
    workspace = Workspace("sqlite:////home/me/mlflow.db", Path("/lustre/study"))
    storage, outbox, tracking = network_file_problems(workspace.sqlite_files, MOUNTS)
    assert storage.startswith("/lustre/study/optuna.db: is on a network file system (lustre), where SQLite files are ")
    assert "PostgreSQL with --storage" in storage
    assert "a local folder with --workdir" in storage
    assert outbox.startswith("/lustre/study/outbox.db: is on a network file system (lustre)")
    assert outbox.endswith("; give a local folder with --workdir or FMNIST_SEARCH_HOME")
    assert tracking.startswith("/home/me/mlflow.db: is on a network file system (nfs4)")
    assert "--tracking-uri" in tracking


def test_servers_need_no_local_folder_except_for_the_outbox() -> None:
    workspace = Workspace("http://server:5000", Path("/home/local/work"), storage="postgresql://host/optuna")
    assert network_file_problems(workspace.sqlite_files, MOUNTS) == []
    assert list(workspace.sqlite_files) == [workspace.outbox_path]
