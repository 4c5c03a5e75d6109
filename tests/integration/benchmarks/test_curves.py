"""The benchmark of learning curves: recordings that are interrupted and continued, and searches that replay them."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest

from benchmarks.curves.__main__ import app, main
from benchmarks.curves.windows import Rungs
from fmnist_search.config import StudyConfig
from fmnist_search.config.pruners import Halving
from fmnist_search.search.pruners import make_pruner

ROOT = Path(__file__).parents[3]
CURVES_FOLDER = ROOT / "benchmarks" / "curves"

TINY_STUDY = """
name = "tiny-curves"
seed = 3
[data]
train_images = 300
validation = 300
[budget]
trials = 1
epochs = 2
[space.common]
batch_size = [32, 64]
optimizer.learning_rate = { low = 1e-3, high = 1e-2, log = true }
[space.cnn]
depth = [1, 2]
width_1 = [4, 8]
"""


def run_curves_command(*arguments: str | Path) -> str:
    """Run the command within this process; return what it prints. Its workers are processes of their own."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        app([*map(str, arguments)], standalone_mode=False)
    return printed.getvalue()


def record(folder: Path, curves: Path) -> None:
    run_curves_command(
        "record", "--study", folder / "tiny.toml", "--curves", curves, "--recipes", "2", "--workers", "1"
    )


@pytest.mark.slow
def test_interrupted_recording_is_continued(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY_STUDY)
    complete, cut = tmp_path / "complete.jsonl", tmp_path / "cut.jsonl"
    record(tmp_path, complete)
    cut.write_text("".join(line + "\n" for line in complete.read_text().splitlines()[:2]))
    record(tmp_path, cut)

    def curves(path: Path) -> list[str]:
        rows = map(json.loads, path.read_text().splitlines()[1:])
        return sorted(str((row["recipe_number"], row["kind"], row["values"], row["val_accuracy"])) for row in rows)

    assert curves(cut) == curves(complete)


@pytest.mark.slow
def test_replay_with_equal_seeds_is_equal() -> None:
    options = ("--seeds", "2", "--compute", "4", "--only", "tpe, halving (the", "--workers", "1", "--json")
    once, again = (run_curves_command("replay", *options) for _ in range(2))
    assert once == again
    found = json.loads(once)
    assert found["recipes"] >= 100
    (row,) = found["methods"].values()
    # More compute never increases the regret.
    medians = [values[0] for values in row["regret_points"].values()]
    assert medians == sorted(medians, reverse=True)


def test_table_correlates_early_epochs_with_the_last() -> None:
    found = json.loads(run_curves_command("carry", "--json"))
    assert all(-1 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in found["constant"])
    assert found["constant"][-1]["value"] > found["constant"][0]["value"]


@pytest.mark.slow
def test_long_searches_are_equal_until_the_window_is_full(tmp_path: Path) -> None:
    out = tmp_path / "windows.jsonl"
    options = ("--sizes", "0,40,20", "--trials", "48", "--running", "5", "--seeds", "1", "--out", out)
    run_curves_command("windows", *options)
    every, large, small = (json.loads(line)["proposed"] for line in out.read_text().splitlines())
    assert every.keys() == {"12", "24", "36", "48"}
    assert [every[at] == large[at] for at in ("12", "24", "36")] == [True, True, True]
    assert [every[at] == small[at] for at in ("12", "24", "36", "48")] == [True, True, False, False]


def test_long_searches_prune_as_successive_halving_does() -> None:
    rungs, values = Rungs(Halving(), 9), np.random.default_rng(0).random((60, 9))
    study = optuna.create_study(direction="maximize", pruner=make_pruner(Halving(), 9))
    for curve in values:
        trial = study.ask()
        for epoch, value in enumerate(curve[:-1], start=1):
            trial.report(value, epoch)
            pruned = trial.should_prune()
            assert rungs.prunes(epoch, value) == pruned
            if pruned:
                break
        study.tell(trial, state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: text.replace('"format": 1', '"format": 99', 1), "has format 99, and this version reads 1"),
        (lambda text: text.replace('"validation": 10848', '"validation": 200', 1), "data.validation = 200"),
        (lambda text: text[: len(text) // 2], "is not a file of curves"),
        (lambda text: "", "is not a file of curves"),
    ],
    ids=["another version", "another space", "cut in a line", "empty"],
)
def test_invalid_curves_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[str], str], expected: str
) -> None:
    invalid = tmp_path / "invalid.jsonl"
    invalid.write_text(damage((CURVES_FOLDER / "cpu.jsonl").read_text()))
    monkeypatch.setattr(sys, "argv", ["curves", "replay", "--curves", str(invalid)])
    with pytest.raises(SystemExit) as ended:
        main()
    message = str(ended.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"error: {invalid}: ")
    assert expected in message
    assert ";" in message


def test_study_of_the_benchmark_is_valid() -> None:
    StudyConfig.load(CURVES_FOLDER / "cpu.toml")
