"""Checkpoints of trials: what is read back, what a bad file falls back to, and that no code in a file runs."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fmnist_search.data.images import Images
from fmnist_search.recipe.execution import Execution
from fmnist_search.training.callbacks import TrainingCallback
from fmnist_search.training.checkpoint import Checkpoint
from fmnist_search.training.loop import EpochResult
from fmnist_search.training.trial import run_trial
from fmnist_search.training.trial_checkpoints import (
    CHECKPOINT_FORMAT,
    TrialCheckpoints,
    parse_checkpoint,
    serialize_checkpoint,
)
from tests.support.jobs import TINY_RECIPE
from tests.unit.training.test_checkpoint import MaliciousPickle


class _Recorder(TrainingCallback):
    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        self.states.append(copy.deepcopy(state))


@pytest.fixture(scope="module")
def checkpoints(images: Images, execution: Execution) -> list[Checkpoint]:
    """The checkpoint after each of three epochs."""
    recorder = _Recorder()
    run_trial(TINY_RECIPE, images, execution, training_callback=recorder)
    digests = [images.digest, images.split_digest]
    return [Checkpoint(TINY_RECIPE, vars(execution), digests, state) for state in recorder.states]


@pytest.fixture(scope="module")
def contents(checkpoints: list[Checkpoint]) -> list[bytes]:
    return [serialize_checkpoint(checkpoint) for checkpoint in checkpoints]


@pytest.fixture
def load(tmp_path: Path, images: Images, execution: Execution) -> Callable[..., tuple[int, list[str]]]:
    """Load the checkpoint of trial 3; return the epochs that it holds, 0 for none, and the problems."""

    def load_trial(**changes: Any) -> tuple[int, list[str]]:
        problems: list[str] = []
        arguments = {"recipe": TINY_RECIPE, "execution": execution, "images": images, **changes}
        state = TrialCheckpoints(tmp_path / "checkpoints").load(3, on_problem=problems.append, **arguments)
        return len(state["epochs"]) if state else 0, problems

    return load_trial


def _with_digest(content: bytes, version: int = CHECKPOINT_FORMAT) -> bytes:
    header = f"fmnist-search trial checkpoint {version} {hashlib.sha256(content).hexdigest()}\n"
    return header.encode() + content


def _torch_file(path: Path, content: object) -> bytes:
    torch.save(content, path)
    return path.read_bytes()


def test_the_last_checkpoint_is_loaded_and_the_files_are_removed(
    tmp_path: Path, contents: list[bytes], load: Callable[..., tuple[int, list[str]]]
) -> None:
    folder = tmp_path / "checkpoints"
    trials = TrialCheckpoints(folder)
    assert (load(), trials.numbers()) == ((0, []), [])
    for epoch, content in enumerate(contents, start=1):
        trials.save(3, content)
        assert load() == (epoch, [])
    trials.save(1_234, contents[0])
    assert trials.numbers() == [3, 1_234]
    trials.remove(3)
    assert (load(), trials.numbers()) == ((0, []), [1_234])
    trials.remove(1_234)
    trials.remove(1_234)
    assert not folder.exists()


def test_only_the_checkpoints_of_these_trials_are_kept(tmp_path: Path, contents: list[bytes]) -> None:
    trials = TrialCheckpoints(tmp_path)
    for number in (1, 2, 3):
        trials.save(number, contents[0])
        trials.save(number, contents[1])
    (tmp_path / "tmp1a2b3c").write_bytes(b"a file that a killed process has left")
    trials.keep_only([2, 7])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["002.ckpt", "002.previous.ckpt"]


def test_a_file_that_cannot_be_written_leaves_the_earlier_ones(
    tmp_path: Path, contents: list[bytes], load: Callable[..., tuple[int, list[str]]]
) -> None:
    folder = tmp_path / "checkpoints"
    TrialCheckpoints(folder).save(3, contents[0])
    TrialCheckpoints(folder).save(3, contents[1])
    (folder / "003.previous.ckpt").unlink()
    (folder / "003.previous.ckpt").mkdir()  # replacing it fails after the new file has been written
    with pytest.raises(OSError, match=r"003\.ckpt"):
        TrialCheckpoints(folder).save(3, contents[2])
    assert len(list(folder.iterdir())) == 2
    (folder / "003.previous.ckpt").rmdir()
    assert load() == (2, [])


BAD_FILES: dict[str, Callable[[bytes, Path], bytes]] = {
    "is damaged": lambda content, _: content[:-100],
    "is not a checkpoint of a trial": lambda *_: b"",
    "is damaged (one bit)": lambda content, _: content[:5_000] + bytes([content[5_000] ^ 1]) + content[5_001:],
    "is not a checkpoint of a trial (text)": lambda *_: b"some text\n" * 50,
    "is of another version of this program": lambda content, _: _with_digest(content.partition(b"\n")[2], 0),
    "is not a checkpoint of a trial (list)": lambda _, path: _with_digest(_torch_file(path, [1, 2])),
    "is not a checkpoint of a trial (empty)": lambda _, path: _with_digest(_torch_file(path, {})),
    "is not a checkpoint of a trial (code)": lambda _, path: _with_digest(
        _torch_file(path, {"state": MaliciousPickle(path.parent / "ran")})
    ),
}


@pytest.mark.parametrize("problem", BAD_FILES)
def test_a_bad_file_falls_back_to_the_one_before_and_then_to_the_start(
    problem: str, tmp_path: Path, contents: list[bytes], load: Callable[..., tuple[int, list[str]]]
) -> None:
    trials, folder = TrialCheckpoints(tmp_path / "checkpoints"), tmp_path / "checkpoints"
    bad, message = BAD_FILES[problem](contents[1], tmp_path / "other"), problem.partition(" (")[0]
    trials.save(3, contents[0])
    trials.save(3, bad)
    epochs, lines = load()
    assert epochs == 1
    assert lines == [f"its checkpoint {folder / '003.ckpt'} {message}; the checkpoint before it is tried"]
    trials.save(3, bad)
    epochs, lines = load()
    assert epochs == 0
    assert lines[1] == f"its checkpoint {folder / '003.previous.ckpt'} {message}; it starts again"
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_would_give_another_result_is_not_used(
    tmp_path: Path, contents: list[bytes], images: Images, execution: Execution, load: Callable[..., tuple[int, Any]]
) -> None:
    TrialCheckpoints(tmp_path / "checkpoints").save(3, contents[0])
    other: dict[str, dict[str, object]] = {
        "is of another recipe": {"recipe": TINY_RECIPE.replace({"seed": 1})},
        "is of other images": {"images": dataclasses.replace(images, split_digest="0" * 32)},
        "is of another device (cpu)": {"execution": dataclasses.replace(execution, device="cuda:0")},
        "is of another execution (threads: 1)": {"execution": dataclasses.replace(execution, threads=2)},
    }
    for problem, changes in other.items():
        epochs, (line,) = load(**changes)
        assert (epochs, f"003.ckpt {problem}; it starts again" in line) == (0, True)
    assert load(execution=dataclasses.replace(execution, allocator="retaining")) == (1, [])


@pytest.mark.parametrize("part", ["network", "averaged", "optimizer", "generator", "weights", "epochs", "best_epoch"])
def test_a_state_that_cannot_be_resumed_is_refused(part: str, checkpoints: list[Checkpoint]) -> None:
    wrong: dict[str, Any] = {"epochs": [{"epoch": 1}], "best_epoch": 9, "generator": torch.zeros(3, dtype=torch.uint8)}
    state = copy.deepcopy(dict(checkpoints[1].state))
    holder = state if part in state else state["training"]
    assert part in holder
    if part == "optimizer":
        holder[part]["state"][0]["exp_avg"] = torch.zeros(7)
    else:
        holder[part] = wrong.get(part, {"network.weight": torch.zeros(3)})
    content = serialize_checkpoint(dataclasses.replace(checkpoints[1], state=state))
    with pytest.raises(ValueError, match=r"^is not a checkpoint of a trial$"):
        parse_checkpoint(content)


def test_the_state_of_a_captured_training_can_be_resumed(checkpoints: list[Checkpoint]) -> None:
    state = copy.deepcopy(dict(checkpoints[1].state))
    for group in state["training"]["optimizer"]["param_groups"]:
        group.update(lr=torch.tensor(0.01), capturable=True)  # as `DeviceLoop` sets them
    content = serialize_checkpoint(dataclasses.replace(checkpoints[1], state=state))
    assert parse_checkpoint(content).epochs_done == 2


def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, contents: list[bytes], load: Callable[..., tuple[int, list[str]]]
) -> None:
    TrialCheckpoints(tmp_path / "checkpoints").save(3, contents[0])
    path = tmp_path / "checkpoints" / "003.ckpt"
    path.unlink()
    path.mkdir()  # reading it fails for every user, also for root
    epochs, (line,) = load()
    assert (epochs, line) == (
        0,
        f"its checkpoint {path} cannot be read (Is a directory); it starts again",
    )
