"""The bench of learning curves: a recording that is cut and goes on, and searches replayed against it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def run_curves_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.curves", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    (folder / "tiny.toml").write_text(TINY_STUDY)
    done = run_curves_command(
        "record", "--study", folder / "tiny.toml", "--curves", folder / "tiny.jsonl", "--recipes", "2"
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_recording_that_was_cut_goes_on_as_if_it_had_not_been(recorded: Path, tmp_path: Path) -> None:
    whole = recorded / "tiny.jsonl"
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(line + "\n" for line in whole.read_text().splitlines()[:2]))
    done = run_curves_command(
        "record", "--study", recorded / "tiny.toml", "--curves", cut, "--recipes", "2", "--workers", "1"
    )
    assert done.returncode == 0, done.stderr

    def figures(path: Path) -> set[str]:
        rows = map(json.loads, path.read_text().splitlines()[1:])
        return {str((row["recipe_number"], row["kind"], row["values"], row["val_accuracy"])) for row in rows}

    assert figures(cut) == figures(whole)


@pytest.mark.slow
def test_a_search_replayed_with_one_seed_is_one_search() -> None:
    options = ("--seeds", "2", "--compute", "4", "--only", "tpe, halving (the", "--json")
    once, again = (run_curves_command("replay", *options) for _ in range(2))
    assert once.returncode == 0, once.stderr
    assert once.stdout == again.stdout
    found = json.loads(once.stdout)
    assert found["recipes"] >= 100
    (row,) = found["methods"].values()
    # Whatever was found, more compute never makes it worse.
    medians = [values[0] for values in row["regret_points"].values()]
    assert medians == sorted(medians, reverse=True)


@pytest.mark.slow
def test_the_table_says_whether_early_epochs_tell_late_ones() -> None:
    done = run_curves_command("carry", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(-1 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in found["constant"])
    assert found["constant"][-1]["value"] > found["constant"][0]["value"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text.replace('"format": 1', '"format": 99', 1), "has format 99, and this version reads 1"),
        (lambda text: text.replace('"validation": 300', '"validation": 200', 1), "data.validation = 200"),
        (lambda text: text[: len(text) // 2], "holds no curves"),
        (lambda text: "", "holds no curves"),
    ],
    ids=["another version", "another space", "cut in a line", "empty"],
)
def test_curves_that_do_not_fit_are_one_clear_line(recorded: Path, tmp_path: Path, damage: object, words: str) -> None:
    assert callable(damage)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(damage((recorded / "tiny.jsonl").read_text()))
    done = run_curves_command("replay", "--study", recorded / "tiny.toml", "--curves", bad)
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {bad}: ")
    assert words in line
    assert ";" in line


def test_the_studies_of_the_bench_are_checked_like_all_others() -> None:
    command = shutil.which("fmnist-search", path=str(Path(sys.executable).parent))
    assert command
    done = subprocess.run([command, "studies", "check", CURVES_FOLDER / "cpu.toml"], check=False, capture_output=True)
    assert done.returncode == 0
