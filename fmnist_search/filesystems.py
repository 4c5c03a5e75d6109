"""File systems on which a SQLite file is damaged or locks do nothing: those that other machines write to as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "afpfs", "ncpfs", "webdav", "davfs"),
        *("ceph", "lustre", "gpfs", "beegfs", "glusterfs", "panfs", "orangefs", "pvfs2", "ocfs2", "gfs2", "wekafs"),
        *(
            "sshfs",
            "s3fs",
            "gcsfuse",
            "rclone",
            "goofys",
            "juicefs",
            "davfs2",
            "quobyte",
            "moosefs",
            "mfs",
            "curlftpfs",
        ),
    )
)
"""Types of file systems, without the prefix `fuse.`."""


class Partition(Protocol):
    """A mounted file system, as psutil describes it."""

    mountpoint: str
    fstype: str


def network_file_system(path: Path, partitions: Sequence[Partition] | None = None) -> str | None:
    """Return the type of the network file system that holds a path; None if its file system is local.

    `partitions` are the mounted file systems, by default those of this machine.
    """
    if partitions is None:
        import psutil  # not at the top: reading images and training work where it is not installed

        try:
            partitions = psutil.disk_partitions(all=True)
        except OSError:  # a sandbox hides them
            return None
    types = {partition.mountpoint: partition.fstype for partition in partitions}  # a later mount hides an earlier one
    resolved = path.resolve()
    mount = next((str(folder) for folder in (resolved, *resolved.parents) if str(folder) in types), "")
    kind = types.get(mount, "").lower().removeprefix("fuse.")
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def network_file_problems(remedies: Mapping[Path, str], partitions: Sequence[Partition] | None = None) -> list[str]:
    """Return a line for each SQLite file on a network file system, with its remedy."""
    kinds = {path: network_file_system(path, partitions) for path in remedies}
    return [
        f"{path}: is on a network file system ({kind}), where SQLite files are damaged; {remedies[path]}"
        for path, kind in kinds.items()
        if kind
    ]
