"""A disk that is full: one line that names the file, what was whole stays whole, and the same command goes on later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import torch

from fmnist_search.config.shipped_studies import copy_shipped_study
from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write
from fmnist_search.search.storage import open_storage
from fmnist_search.sqlite_files import is_disk_full
from fmnist_search.training.checkpoint import save_state, state_from_bytes
from fmnist_search.workflows.study.running import announced
from tests.support.disks import fill, free_space, small_disk

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 2) as folder:
        yield folder


def announce(folder: Path) -> None:
    with announced(folder, "tiny"):
        pass


def write_text(folder: Path) -> None:
    with atomic_write(folder / "new") as file:
        file.write(b"x" * 100_000)


def overwrite(folder: Path) -> None:
    with atomic_write(folder / "old") as file:
        file.write(b"x" * 100_000)


@pytest.mark.parametrize(
    "write",
    [
        announce,
        write_text,
        overwrite,
        lambda folder: save_state(folder / "weights.pt", {"a": torch.zeros(100_000)}),
        lambda folder: copy_shipped_study("quick", folder),
    ],
)
def test_an_error_names_the_file_and_leaves_nothing_that_is_incomplete(
    disk: Path, write: Callable[[Path], object]
) -> None:
    (disk / "old").write_text("what was whole")
    fill(disk)
    with pytest.raises((OSError, UserError)) as caught:
        write(disk)
    assert is_disk_full(caught.value) or "No space left on device" in str(caught.value)
    assert str(disk) in str(caught.value)
    assert {path.name for path in disk.iterdir()} == {"old", "filler"}
    assert (disk / "old").read_text() == "what was whole"
    free_space(disk)
    write(disk)


def test_weights_are_whole_or_not_there(disk: Path) -> None:
    path = disk / "weights.pt"
    save_state(path, {"a": torch.ones(3)})
    fill(disk)
    with pytest.raises(OSError, match="No space left on device"):
        save_state(path, {"a": torch.zeros(100_000)})
    assert state_from_bytes(path.read_bytes(), "weights")["a"].tolist() == [1, 1, 1]


def write_much(study: optuna.Study) -> None:
    for _ in range(100):  # there may be room left in the write-ahead log
        study.set_user_attr("long", "x" * 2_000)


def test_the_trials_of_a_study_survive_and_its_storage_goes_on(disk: Path) -> None:
    url = f"sqlite:///{disk / 'optuna.db'}"
    study = optuna.create_study(storage=open_storage(url), study_name="tiny")
    study.add_trial(optuna.create_trial(value=0.5))
    fill(disk)
    with pytest.raises(UserError, match=r"is full; free some space") as caught:
        write_much(study)
    assert caught.value.lines[0].startswith(f"storage {disk / 'optuna.db'}: cannot be written")
    assert [trial.value for trial in optuna.load_study(study_name="tiny", storage=open_storage(url)).trials] == [0.5]
    free_space(disk)
    study.add_trial(optuna.create_trial(value=0.75))
    assert study.best_value == 0.5
    assert len(optuna.load_study(study_name="tiny", storage=open_storage(url)).trials) == 2


def test_a_new_storage_on_a_full_disk_is_an_error(disk: Path) -> None:
    fill(disk)
    with pytest.raises(UserError, match="disk is full"):
        open_storage(f"sqlite:///{disk / 'optuna.db'}")
    free_space(disk)
    open_storage(f"sqlite:///{disk / 'optuna.db'}")
