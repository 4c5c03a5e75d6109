"""The stored project folder: unpacked to a new place, and what commands print about it made comparable.

`make.py` and `tests/integration/test_old_data.py` share this module. It imports nothing of the package.
"""

from __future__ import annotations

import json
import platform
import sqlite3
import tarfile
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ARCHIVE = HERE / "project.tar.xz"
OUTPUTS = HERE / "outputs"
MADE_WITH = HERE / "made_with.json"
FOLDER = "/golden"
"""The folder that every absolute path in the archive and in the stored outputs begins with."""

PROSE = ("edges", "problems", "notes", "finding")
"""Keys whose values are sentences for people: their number is compared, their wording is not."""
MACHINE = ("place",)
"""Keys whose values depend on the machine: the folder of the images."""
TIMES = ("seconds", "searched_seconds", "overhead", "began_at", "ended_at")
NEW = (*TIMES, "run_id", "page", "reason", "reasons", "verdict")
"""Keys whose values differ each time something is trained: new runs, times, and sentences about them."""


@dataclass(frozen=True)
class Output:
    """What a command printed with --json, in a folder of the archive.

    The values of the keys in `volatile` are not compared. An output is `trained` if this command trained or drew its
    numbers: they are equal only with the same libraries and processor. `changes` says whether it changes the folder.
    """

    arguments: tuple[str, ...]
    folder: str = "project"
    code: int = 0
    volatile: tuple[str, ...] = ()
    trained: bool = False
    changes: bool = False
    printed: Any = None


def read_outputs() -> dict[str, Output]:
    """Return the stored outputs by name."""
    outputs = {}
    for path in sorted(OUTPUTS.glob("*.json")):
        stored = json.loads(path.read_text())
        lists = {key: tuple(stored[key]) for key in ("arguments", "volatile")}
        outputs[path.stem] = Output(**{**stored, **lists})
    return outputs


def write_output(name: str, output: Output) -> None:
    """Write an output to its file."""
    (OUTPUTS / f"{name}.json").write_text(json.dumps(asdict(output), indent=1) + "\n")


def normalised(value: Any, folder: Path, volatile: Collection[str] = ()) -> Any:
    """Return JSON with the paths below `folder` as in the archive, and without the values that are not compared.

    A value that is not compared becomes the name of its type; a list keeps its length.
    """
    hidden = {*PROSE, *MACHINE, *volatile}
    if isinstance(value, dict):
        return {
            key: _hidden(inner) if key in hidden else normalised(inner, folder, volatile)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [normalised(inner, folder, volatile) for inner in value]
    return value.replace(str(folder), FOLDER) if isinstance(value, str) else value


def _hidden(value: Any) -> Any:
    if isinstance(value, list):
        return [_hidden(inner) for inner in value]
    return None if value is None else f"<{type(value).__name__}>"


def unpack(folder: Path) -> Path:
    """Unpack the archive into a folder; return the folder, with symbolic links resolved."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    move_addresses(folder, FOLDER, str(folder))
    return folder


def move_addresses(folder: Path, before: str, now: str) -> None:
    """Replace one absolute path by another in every text of every SQLite file below a folder.

    MLflow stores where artifacts and models lie as absolute addresses, and the outbox stores the address of the store
    that an event is for.
    """
    for path in sorted(folder.rglob("*.db")):
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            for table, column in list(_columns(database)):
                database.execute(
                    f'UPDATE "{table}" SET "{column}" = REPLACE("{column}", ?, ?) '
                    f'WHERE TYPEOF("{column}") = \'text\' AND INSTR("{column}", ?)',
                    (before, now, before),
                )
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _columns(database: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    for (table,) in database.execute(tables).fetchall():
        for column in database.execute(f'PRAGMA table_info("{table}")').fetchall():
            yield table, column[1]


def machine() -> dict[str, str]:
    """Return what decides the last digits of a training: the libraries and the processor."""
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "optuna")}
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {**versions, "processor": model or platform.processor()}


def is_same_machine() -> bool:
    """Return whether a training gives the same bits here as where the outputs were made."""
    return bool(json.loads(MADE_WITH.read_text())["machine"] == machine())
