"""The benchmark of learning curves: recordings that are interrupted and continued, and searches that replay them."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from benchmarks.curves.__main__ import app, main
from benchmarks.curves.methods import select_methods
from benchmarks.curves.recorded import RecordedRecipes
from benchmarks.curves.replay import Replay
from benchmarks.curves.table import CurveTable
from benchmarks.curves.windows import Rungs
from fmnist_search.config import StudyConfig
from fmnist_search.config.pruners import Halving
from fmnist_search.errors import UserError
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


def record(folder: Path, curves: Path, plan: str) -> None:
    options = ("--plan", plan, "--recipes", "2", "--workers", "1")
    run_curves_command("record", "--study", folder / "tiny.toml", "--curves", curves, *options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "kinds"),
    [
        ("annealed", {"search", "annealed", "repeat 1", "repeat 2", *(f"annealed x{n}" for n in (1, 2, 4))}),
        ("neighbours", {"search", "neighbour", "repeat 1", "repeat 2", "small"}),
    ],
)
def test_interrupted_recording_is_continued(tmp_path: Path, plan: str, kinds: set[str]) -> None:
    (tmp_path / "tiny.toml").write_text(TINY_STUDY)
    complete, cut = tmp_path / "complete.jsonl", tmp_path / "cut.jsonl"
    record(tmp_path, complete, plan)
    cut.write_text("".join(line + "\n" for line in complete.read_text().splitlines()[:2]))
    record(tmp_path, cut, plan)

    def curves(path: Path) -> list[str]:
        rows = map(json.loads, path.read_text().splitlines()[1:])
        return sorted(str((row["recipe_number"], row["kind"], row["values"], row["val_accuracy"])) for row in rows)

    assert curves(cut) == curves(complete)
    rows = [json.loads(line) for line in complete.read_text().splitlines()[1:]]
    assert {row["kind"] for row in rows} == kinds
    assert all(len(row["val_loss"]) == len(row["train_loss"]) == len(row["val_accuracy"]) == 2 for row in rows)


# Neighbours are better than random recipes, of which the best two reach 0.89 and 0.88.
RANDOM_RECIPES, NEIGHBOURS, EPOCHS = 20, 3, 4


@pytest.fixture(scope="session")
def drawn_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of curves that were not trained; its study lies beside it, as `tiny.toml`."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "tiny.toml").write_text(TINY_STUDY.replace("epochs = 2", f"epochs = {EPOCHS}"))
    study = StudyConfig.load(folder / "tiny.toml").model_dump(exclude_none=True)
    rows: list[dict[str, Any]] = [
        {"format": 1, "study": study, "precision": "float32", "machine": "none", "versions": {}, "seconds": "none"}
    ]
    for number in range(RANDOM_RECIPES + NEIGHBOURS):
        values = {
            "batch_size": (32, 64)[number % 2], "optimizer.learning_rate": 1e-3 * 10 ** (number / 23),
            "model.depth": 1 + number // 2 % 2, "model.width_1": (4, 8)[number // 4 % 2],
        }  # fmt: skip
        final = 0.7 + number / 100
        accuracies = [final - 0.1 / epoch for epoch in range(1, EPOCHS)] + [final]
        kind = "search" if number < RANDOM_RECIPES else "neighbour"
        rows.append(
            {"recipe_number": number, "kind": kind, "values": values, "seed": 0, "parameters": 1}
            | {"val_accuracy": accuracies, "seconds": [1.0 + number % 3] * EPOCHS}
        )
    # A neighbour of two recipes is recorded twice, with another result.
    rows.append({**rows[-1], "recipe_number": len(rows), "val_accuracy": [0.5] * EPOCHS})
    for kind, best, worst in (("repeat 1", 0.88, 0.1), ("repeat 2", 0.9, 0.9)):
        for number, final in ((RANDOM_RECIPES - 1, best), (0, worst)):
            rows.append({**rows[1 + number], "kind": kind, "val_accuracy": [final] * EPOCHS})
    (folder / "drawn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "drawn.jsonl"


def replay(table: Path, only: str, *options: str) -> dict[str, Any]:
    """Return the results of replays on a table; those of a method as `["methods"][name]`."""
    files = ("--study", table.with_name("tiny.toml"), "--curves", table)
    short = ("--replays", "2", "--compute", "4", "--workers", "1")
    printed = run_curves_command("replay", *files, "--only", only, *short, "--json", *options)
    found: dict[str, Any] = json.loads(printed)
    return found


def test_replay_with_equal_seeds_is_equal(drawn_table: Path) -> None:
    once, again = (replay(drawn_table, "tpe, halving|one-epoch rule, 10", "--running", "2") for _ in range(2))
    assert once == again
    assert once["seeds"] == "judging: 1000 to 1001"
    assert replay(drawn_table, "tpe, halving", "--seeds", "choosing")["seeds"] == "choosing: 0 to 1"
    for row in once["methods"].values():
        # More compute never increases the regret.
        medians = [values[0] for values in row["compute"]["regret_points"].values()]
        assert medians == sorted(medians, reverse=True)


def test_workers_share_the_compute(drawn_table: Path) -> None:
    recorded = RecordedRecipes(CurveTable.read(drawn_table), "epochs")
    (method,) = select_methods("random, every", sweep=False)
    alone, both = (Replay(recorded, method, 1000, 6.0, workers).run() for workers in (1, 2))
    # Each training takes 1; with two workers, the first has its result while the other's has been computed too.
    assert alone.compute_spent == alone.wall_times == (0, 1, 2, 3, 4, 5, 6)
    assert both.compute_spent == (0, 2, 2, 4, 4, 6, 6)
    assert both.wall_times == (0, 1, 1, 2, 2, 3, 3)
    assert both.best_values == alone.best_values


def test_survivors_wait_for_the_candidates_of_all_workers(drawn_table: Path) -> None:
    (method,) = select_methods("one-epoch rule, 10", sweep=False)
    recorded = RecordedRecipes(CurveTable.read(drawn_table), "epochs")
    alone, three = (Replay(recorded, method, 1000, 30.0, workers).run() for workers in (1, 3))
    # Ten candidates of one epoch take four rounds of three workers; then the best three train at a time.
    assert alone.compute_spent == (0, 10 / EPOCHS + 1, 10 / EPOCHS + 2, 10 / EPOCHS + 3)
    assert three.wall_times == (0, 4 / EPOCHS + 1, 4 / EPOCHS + 1, 4 / EPOCHS + 1)
    assert three.best_values[-1] == alone.best_values[-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_paused_trials_go_on_where_they_were(drawn_table: Path, workers: int) -> None:
    (method,) = select_methods("freeze-thaw", sweep=False)
    recorded = RecordedRecipes(CurveTable.read(drawn_table), "epochs")
    trace = Replay(recorded, method, 1000, 100.0, workers).run()
    # Every recipe is trained in the end, each of its epochs once; without pauses, all would complete at whole numbers.
    assert len(trace.compute_spent) == 1 + len(recorded.curves)
    assert trace.compute_spent[-1] == len(recorded.curves)
    assert any(not float(spent).is_integer() for spent in trace.compute_spent)
    # The model finds the best recipes before half of all epochs are trained.
    assert max(recorded.final_accuracies) in trace.best_values[: len(trace.best_values) // 2]


def test_targets_are_those_of_random_recipes(drawn_table: Path) -> None:
    found = replay(drawn_table, "random, every")
    assert found["targets"]["best"] == pytest.approx(0.92)
    assert found["targets"]["best_two"] == pytest.approx(0.88)
    assert 0.88 < found["targets"]["goal"] <= 0.89
    # The deviation over seeds is that of the better half, 0.01 * sqrt(2) for the one recipe there with repeats.
    assert found["targets"]["near_best"] == pytest.approx(0.92 - 0.01 * math.sqrt(2))
    assert (found["random_recipes"], found["recipes"]) == (RANDOM_RECIPES, RANDOM_RECIPES + NEIGHBOURS)


def test_results_of_several_runs_are_one_file(drawn_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    for only, running in (("random, every", 1), ("random, halving", 1), ("random, every", 2)):
        replay(drawn_table, only, "--out", str(out), "--running", f"{running}")
    runs = json.loads(out.read_text())["runs"]
    assert [(run["running"], [*run["methods"]]) for run in runs] == [
        (1, ["random, every training full", "random, halving"]),
        (2, ["random, every training full"]),
    ]
    assert [[*row] for row in runs[1]["methods"].values()] == [["compute", "wall"]]
    figure = tmp_path / "regret.png"
    run_curves_command("plot", out, figure, "--running", "2")
    assert figure.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="has no replays of 'tpe' with 2 at a time"):
        run_curves_command("plot", out, figure, "--running", "2", "--only", "tpe")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--seeds", "7"), "take choosing or judging"),
        (("--clock", "days"), "take seconds or epochs"),
        (("--out", "tiny.toml"), "is not a file of replays; name another file"),
    ],
)
def test_unknown_seeds_clocks_and_results_are_refused(
    drawn_table: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, str], expected: str
) -> None:
    monkeypatch.chdir(drawn_table.parent)
    with pytest.raises(UserError, match=expected):
        replay(drawn_table, "random, every", *options)


@pytest.mark.slow
def test_published_table_can_be_replayed() -> None:
    options = ("--replays", "2", "--compute", "4", "--only", "tpe, halving", "--workers", "2", "--json")
    found = json.loads(run_curves_command("replay", *options))
    assert found["recipes"] >= 100


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
