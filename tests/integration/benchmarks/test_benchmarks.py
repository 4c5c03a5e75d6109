"""The benchmarks of speed: both ways do the same work, the commands run, and the pages say what was measured."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import checkpoints, reference, reference_results, report, study, throughput, time_to_accuracy, tutorial
from benchmarks.measure import RESULTS_FOLDER, BenchmarkResult, Measurement, interleave
from benchmarks.ours import tuned_settings
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images, read_test_set
from fmnist_search.models.classifier import build
from fmnist_search.models.presets import PRESETS
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.autotune import has_bfloat16
from fmnist_search.training.devices import resolve_execution
from fmnist_search.training.engine import fit
from fmnist_search.training.evaluation import evaluate
from fmnist_search.training.state import batch_sizes

ROOT = Path(__file__).parents[3]
HEAVY_PACKAGES = ("mlflow", "optuna", "typer", "pydantic", "platformdirs", "rich", "matplotlib", "sqlalchemy")

MINI_STUDY = """
name = "mini"
question = "Does it run?"
[data]
train_images = 300
validation = 300
[budget]
trials = 2
epochs = 1
[space.common]
batch_size = [100]
optimizer.learning_rate = { low = 3e-3, high = 3e-2, log = true }
[space.cnn]
depth = [1, 2]
width_1 = [4, 8]
"""

SMALL_TRAINING = (
    "--device",
    "cpu",
    "--set",
    "data.train_images=300",
    "--set",
    "model.depth=1",
    "--set",
    "model.width_1=8",
)

RunBenchmark = Callable[..., str]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunBenchmark:
    """A benchmark by its command line, within this process; what it prints."""

    def run(module: ModuleType, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def folder(source: DataSource) -> Iterator[Path]:
    with tutorial.torchvision_folder(source) as folder:
        yield folder


# --------------------------------------------------------------------------------- the same work


@pytest.mark.parametrize(
    "changes",
    [
        *throughput.NETWORKS.values(),
        {"model.depth": 4, "model.kernel_1": 5, "model.pool_size": 3},
        {"model.stem": "space_to_depth", "model.depth": 4, "model.head": "flatten"},  # which leaves one pixel
    ],
    ids=[*throughput.NETWORKS, "other kernels and pools", "stem and flattened head"],
)
@torch.no_grad()
def test_the_tutorial_trains_the_same_network(changes: dict[str, object], images: Images) -> None:
    model = Recipe().replace({"model.depth": 3, **changes} if "model.family" not in changes else changes).model
    ours = build(model).network
    theirs = tutorial.build_network(model)
    state = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(state))
    pixels = images.train.pixels[:32, None] / 255
    for mode in (True, False):
        torch.testing.assert_close(theirs.train(mode)(pixels), ours.train(mode)(pixels), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [64, 100, 128])
def test_both_ways_take_the_same_images_in_the_same_number_of_steps(
    batch_size: int, source: DataSource, folder: Path
) -> None:
    data = Data(train_images=1_000, validation=1_000)
    ours, theirs = load_images(data, source), tutorial.training_set(folder, data)
    batches = tutorial.make_loader(theirs, batch_size, 0, "cpu", shuffle=True)
    assert len(batches) == len(batch_sizes(len(ours.train), batch_size))
    for index in (0, 500, 999):
        pixels, label = theirs[index]
        assert torch.equal((pixels[0] * 255).round().byte(), ours.train.pixels[index])
        assert label == ours.train.labels[index]


def test_both_ways_augment_training_images_and_no_validation_images(folder: Path) -> None:
    recipe = throughput.Case("tiny", 128, augmented=True).recipe("float32", **{"data.train_images": 200})
    training = tutorial.training_set(folder, recipe.data, recipe.augmentation)
    assert not torch.equal(torch.stack([training[0][0] for _ in range(8)]).std(0), torch.zeros(1, 28, 28))
    validation = tutorial.validation_set(folder, Data(validation=100))
    assert torch.equal(validation[0][0], validation[0][0])


# ----------------------------------------------------------------------------------- the commands


@pytest.mark.slow
def test_throughput_measures_training_and_validation(bench: RunBenchmark, tmp_path: Path) -> None:
    options = ("--rounds", 2, "--seconds", 0.01, "--workers", 0, "--device", "cpu")
    text = bench(throughput, "--only", "tiny, batch size 128", *options, "--save", tmp_path, "--json")
    (path,) = tmp_path.iterdir()
    kind = "cpu" if has_bfloat16(torch.device("cpu")) else "cpu-without-bfloat16"
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d-throughput-{kind}.json", path.name)
    saved = BenchmarkResult.from_json(path.read_text())
    assert saved.machine.endswith("without bfloat16" if "without" in kind else "with bfloat16")
    assert saved == BenchmarkResult.from_json(text)
    assert all(len(figure.ours) == len(figure.theirs) == 2 for figure in saved.figures)
    assert str(tmp_path) not in text
    assert saved.command.startswith("python -m benchmarks.throughput --only")
    few = ("--validation-images", 300, "--rounds", 1, "--workers", 0)
    assert "validation, standard" in bench(throughput, "--only", "validation", *few)


@pytest.mark.slow
def test_checkpoints_of_a_study_are_counted_and_measured(bench: RunBenchmark, tmp_path: Path) -> None:
    study_file = tmp_path / "mini.toml"
    study_file.write_text(MINI_STUDY.replace("epochs = 1", "epochs = 4"))
    options = ("--trials", 1, "--workers", 1, "--seconds", 0, "--device", "cpu", "--json")
    result = BenchmarkResult.from_json(bench(checkpoints, study_file, *options))
    figures = {figure.what: figure.ours for figure in result.figures}
    assert figures["checkpoints of a trial"] == (3.0,)  # after each epoch until the trial pauses
    assert 0 < figures["processor time of a checkpoint"][0] < 1_000
    assert 0 < figures["share of the study's time"][0] < 100


@pytest.mark.slow
def test_time_to_accuracy_reports_the_accuracy_of_a_training_that_misses_its_target(bench: RunBenchmark) -> None:
    options = ("--set", "epochs=1", "--workers", 0, "--seeds", 1, "--tutorial", "--tutorial-factor", 1, "--json")
    found = json.loads(bench(time_to_accuracy, *SMALL_TRAINING, *options))
    assert found["figures"] == []
    assert re.search(r"ours \d+\.\d+% after 1 epochs", found["remarks"][0])
    assert re.search(r"tutorial \d+\.\d+% after 1 epochs", found["remarks"][1])


@pytest.mark.slow
def test_time_to_accuracy_stops_at_the_target(bench: RunBenchmark) -> None:
    precision = {"float32": "bfloat16", "bfloat16": "float32"}[tuned_settings("cpu")[1]]  # not what the tuner chooses
    options = ("--target", 5, "--set", "epochs=9", "--set", f"precision={precision}", "--seeds", 2, "--json")
    found = json.loads(bench(time_to_accuracy, *SMALL_TRAINING, *options))
    assert found["settings"]["precision"] == precision
    assert "after 1 epochs" in found["remarks"][0]
    training, with_evaluation = found["figures"]
    assert all(0 < a < b for a, b in zip(training["ours"], with_evaluation["ours"], strict=True))


@pytest.mark.slow
def test_reference_trains_a_preset_from_every_seed_and_saves_the_results(bench: RunBenchmark, tmp_path: Path) -> None:
    short = ("--preset", "logistic", "mlp-512", "--seeds", 2, "--epochs-limit", 2, "--set", "data.train_images=500")
    text = bench(reference, *short, "--device", "cpu", "--workers", 1, "--save", tmp_path, "--json")
    saved = {result.subject: result for result in reference_results.latest_results(tmp_path)}
    assert [json.loads(result.to_json()) for result in saved.values()] == json.loads(text)
    assert saved.keys() == {"logistic-data-train-images-500", "mlp-512-data-train-images-500"}
    for name, validation in (("logistic", 0), ("mlp-512", 12_000)):
        result = saved[f"{name}-data-train-images-500"]
        assert result.settings["seeds"] == [0, 1]
        recipe = Recipe().replace(result.settings["recipe"])
        assert recipe.model == PRESETS[name].recipe.model
        assert (recipe.epochs, recipe.data.validation, recipe.precision) == (2, validation, "float32")
        figures = {figure.what: figure.ours for figure in result.figures}
        assert all(len(samples) == 2 for samples in figures.values())
        assert all(5 < accuracy < 100 for accuracy in figures["test accuracy"])
        assert ("validation accuracy" in figures) == bool(validation)
        assert result.command.startswith("python -m benchmarks.reference --preset logistic")


def test_reference_evaluates_the_weights_of_the_last_epoch_on_the_test_images(
    bench: RunBenchmark, source: DataSource
) -> None:
    changes = {"data.train_images": 500, "data.validation": 0, "epochs": 2}
    recipe = PRESETS["logistic"].recipe.replace(changes)
    (*_, last) = fit(recipe, load_images(recipe.data, source), resolve_execution("cpu", threads=1))
    expected = evaluate(last.classifier, read_test_set("fashion-mnist", source))
    short = ("--preset", "logistic", "--seeds", 1, "--epochs-limit", 2, "--set", "data.train_images=500")
    (found,) = json.loads(bench(reference, *short, "--device", "cpu", "--workers", 1, "--json"))
    figures = {figure["what"]: figure["ours"] for figure in found["figures"]}
    assert figures["test accuracy"] == [pytest.approx(100 * expected.accuracy)]
    assert figures["test loss"] == [pytest.approx(expected.loss)]


def test_reference_trains_on_all_images_unless_its_author_used_validation_images() -> None:
    validation_counts = {name: reference.published_recipe(preset).data.validation for name, preset in PRESETS.items()}
    assert {name for name, count in validation_counts.items() if count} == {"mlp-512", "simple-cnn"}
    assert validation_counts["mlp-512"] == 12_000


@pytest.mark.slow
def test_trainings_that_finished_before_an_interruption_are_saved(
    bench: RunBenchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt_after_first_result() -> None:
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    deadline = time.monotonic() + 180
    few = ("--preset", "logistic", "mlp-512", "--seeds", 1, "--workers", 1)
    settings = ("--set", "data.train_images=1000", "--device", "cpu", "--save", tmp_path)
    interrupter = threading.Thread(target=interrupt_after_first_result)
    interrupter.start()
    with pytest.raises(SystemExit) as ended:
        bench(reference, *few, *settings)
    interrupter.join()
    assert ended.value.code == 130
    (result,) = reference_results.latest_results(tmp_path)
    assert result.settings["preset"] == "logistic"
    stdout, stderr = capsys.readouterr()
    assert stdout == reference_results.results_table([result])
    interruption, finished = sorted(stderr.splitlines())  # the signal comes before or after the line of the training
    assert interruption.startswith("interrupted: finished trainings count")
    assert finished.startswith("logistic seed 0")


def test_a_changed_hyperparameter_is_applied_and_reported(bench: RunBenchmark) -> None:
    short = ("--preset", "logistic", "--seeds", 1, "--epochs-limit", 1, "--set", "data.train_images=500", "--json")
    authors, changed = (
        json.loads(bench(reference, *short, "--device", "cpu", "--workers", 1, *more))[0]
        for more in ((), ("--set", "normalisation=unit"))
    )
    assert changed["settings"]["changes"] == {"data.train_images": 500, "normalisation": "unit"}
    assert changed["figures"][0]["ours"] != authors["figures"][0]["ours"]


def test_a_training_that_diverges_is_not_saved(bench: RunBenchmark, tmp_path: Path) -> None:
    diverging = (
        "--set",
        "optimizer.learning_rate=100",
        "--set",
        "data.train_images=500",
        "--set",
        "normalisation=global",
    )
    options = ("--preset", "mlp-512", "--seeds", 1, "--epochs-limit", 9, "--device", "cpu", "--workers", 1)
    assert json.loads(bench(reference, *options, *diverging, "--json", "--save", tmp_path)) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "ways"),
    [
        (("--trials", 2), 2),
        pytest.param(("--seconds", 1), 2, marks=pytest.mark.exhaustive),
        (("--trials", 2, "--alone"), 1),
    ],
    ids=["same trials", "same time", "alone"],
)
def test_a_study_runs_both_ways_or_alone_and_is_read_from_their_stores(
    bench: RunBenchmark, tmp_path: Path, end: tuple[object, ...], ways: int
) -> None:
    (tmp_path / "mini.toml").write_text(MINI_STUDY)
    changed = ("--set", "data.train_images=200")
    found = json.loads(bench(study, tmp_path / "mini.toml", *end, *changed, "--rounds", 1, "--json"))
    assert found["settings"]["images"] == 200
    values = {row["what"].split(", ")[1]: (*row["ours"], *row["theirs"]) for row in found["figures"]}
    assert all(len(samples) == ways for samples in values.values())
    assert all(0 < share < 100 for share in values["wall time in which nothing trained"])
    assert all(50 < megabytes < 20_000 for megabytes in values["peak memory"])
    assert all(5 < accuracy < 100 for accuracy in values["best validation accuracy"])


@pytest.mark.slow
def test_the_measurements_of_the_engine_need_only_torch(folder: Path) -> None:
    script = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY_PACKAGES}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
from benchmarks import reference, throughput, time_to_accuracy, tutorial
sys.argv = ["", "--images", "300", "--validation", "300", "--epochs", "1", "--data-dir", {str(folder)!r}]
tutorial.main()
from benchmarks.ours import data_source
from fmnist_search.errors import UserError
try:
    data_source(None)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "validation accuracy" in done.stdout
    assert "n=1" in done.stdout
    assert "--data-dir: is required because platformdirs is not installed" in done.stdout


# --------------------------------------------------------------------------------- what is reported


def test_measurements_alternate_and_their_first_samples_are_dropped() -> None:
    order: list[str] = []

    def way(name: str) -> Iterator[float]:
        for value in range(9):
            order.append(name)
            yield value

    assert interleave({"a": way("a"), "b": way("b")}, 2) == {"a": (1, 2), "b": (1, 2)}
    assert "".join(order) == "abab" + "ba"


@pytest.mark.parametrize(
    ("ours", "theirs", "better", "median", "verdict"),
    [
        ((200.0, 220.0), (100.0, 100.0), "higher", 2.1, ""),
        ((10.0, 10.0), (30.0, 20.0), "lower", 2.5, ""),
        ((100.0, 150.0), (120.0, 100.0), "higher", 1.167, "machine too noisy to tell"),
        ((100.0, 101.0), (101.0, 100.0), "higher", 1.0, "no difference"),
        ((100.0,), (50.0,), "higher", 2.0, "measured once, so the spread is not known"),
    ],
)
def test_a_ratio_within_the_noise_has_a_caveat(
    ours: tuple[float, ...], theirs: tuple[float, ...], better: str, median: float, verdict: str
) -> None:
    figure = Measurement("x", "s", ours, theirs, better)
    assert figure.ratio
    assert figure.ratio.median == pytest.approx(median, abs=1e-3)
    assert figure.ratio_caveat == verdict


def test_overlapping_trainings_are_covered_once() -> None:
    assert study.covered_seconds([(5, 6), (0, 2), (1, 3), (1.5, 1.8)]) == 4


def test_the_report_shows_the_latest_of_each_benchmark_subject_and_device(tmp_path: Path) -> None:
    for date, device, seconds in (("2026-01-01", "cpu", 3.0), ("2026-01-02", "cpu", 2.0), ("2026-01-01", "gpu", 1.0)):
        figures = (
            Measurement("the job", "s", (seconds,), (4.0,), "lower", headline=True),
            Measurement("a detail", "s", (seconds,)),
        )
        result = BenchmarkResult("study", "usual script", figures, {}, device, date=date, machine=f"a {device}")
        (tmp_path / result.file_name).write_text(result.to_json())
    alone = BenchmarkResult(
        "study",
        "usual script",
        (Measurement("alone", "s", (9.0,)),),
        {},
        subject="alone",
        date="2026-01-03",
        machine="a cpu",
    )
    (tmp_path / alone.file_name).write_text(alone.to_json())
    (tmp_path / "2026-01-03-other.json").write_text("{}")
    results = report.latest_results(tmp_path)
    rows = report.results_table(results, headlines_only=True).splitlines()[2:]
    assert [re.findall(r"\| (\S+) n=1 \| 4 n=1 \| (\S+) \| a (\w+) \| (\S+) \|", row) for row in rows] == [
        [("2", "2x", "cpu", "2026-01-02")],
        [("1", "4x", "gpu", "2026-01-01")],
    ]
    assert len(report.results_table(results, headlines_only=False).splitlines()) == 7
    page = "before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n"
    tables = {"benchmarks": "| a |\n"}
    written = report.replace_tables(page, tables)
    assert written == "before\n<!-- benchmarks -->\n\n| a |\n\n<!-- /benchmarks -->\nafter\n"
    assert report.replace_tables(written, tables) == written


def make_result(
    preset: str, accuracies: tuple[float, ...], date: str, device: str = "cpu", **changes: object
) -> BenchmarkResult:
    """A result of the reference benchmark, as its file holds it."""
    recipe = {name: value for name, value in PRESETS[preset].recipe.to_flat_dict().items() if name != "seed"}
    figures = tuple(
        Measurement(what, "", accuracies)
        for what in (
            reference_results.TEST_ACCURACY,
            reference_results.TEST_LOSS,
            reference_results.TRAINING_ACCURACY,
            reference_results.TRAINING_SECONDS,
        )
    )
    settings = {"preset": preset, "changes": changes, "workers": 2, "recipe": recipe}
    subject = "-".join([preset, *map(str, changes.values())])
    machine, numbers = f"a {device}", {"python": "3", "torch": "2"}
    return BenchmarkResult(
        "reference", "author", figures, settings, device, (), subject, "the command", date, machine, numbers
    )


def test_the_reference_table_shows_the_latest_of_each_network_and_device(tmp_path: Path) -> None:
    for result in (
        make_result("lenet", (90.0, 92.0), "2026-01-02"),
        make_result("lenet", (50.0,), "2026-01-01"),
        make_result("lenet", (93.0,), "2026-01-01", device="gpu"),
        make_result("lenet", (70.0,), "2026-01-03", normalisation="unit"),
    ):
        (tmp_path / result.file_name).write_text(result.to_json())
    results = reference_results.latest_results(tmp_path)
    assert report.latest_results(tmp_path) == []
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in reference_results.reference_table(results).splitlines()[2:]
    ]
    lenets = [row for row in rows if row and row[0] == "`lenet`"]
    assert [(row[2], row[9], row[10]) for row in lenets] == [
        ("91.00 ± 1.41 (n=2)", "a cpu", "2026-01-02"),
        ("93.00 (n=1)", "a gpu", "2026-01-01"),
    ]
    assert {row[0].strip("`") for row in rows if row} == PRESETS.keys()
    assert sum("not measured yet" in row for row in rows) == len(PRESETS) - 1
    changed = reference_results.variants_table(results)
    assert "| `lenet`, normalisation unit | about 92, loss about 0.22 | 70.00 (n=1) |" in changed
    assert "$ the command" in changed


@pytest.mark.parametrize("page", report.page_tables(RESULTS_FOLDER), ids=lambda page: page.name)
def test_the_pages_show_the_stored_results(page: Path) -> None:
    text, tables = page.read_text(), report.page_tables(RESULTS_FOLDER)[page]
    assert all(f"<!-- {name} -->" in text for name in tables)
    assert text == report.replace_tables(text, tables)
