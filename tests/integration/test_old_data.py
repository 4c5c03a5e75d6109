"""Folders that an earlier version wrote are read and continued, and --json prints what it printed then.

`tests/golden` holds such a folder with the outputs, and the script that made them. Apart from the command line, these
tests use nothing of the package, so that they do not change with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from optuna.trial import FrozenTrial

from fmnist_search.cli.app import CommandSettings, main
from tests.golden.project import Output, is_same_machine, normalised, read_outputs, unpack

OUTPUTS = read_outputs()
READING = [name for name, output in OUTPUTS.items() if not output.changes]
ALONE = ("search-continued", "train-resume", "sync")
"""Commands that have a test of their own below."""
ADDED_TAGS = {"process", "recipe_sha256", "device_name", "session", "mlflow.note.content", "mlflow.user"}
ADDED_TAGS |= {"mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit"}
"""Tags of runs that the program did not write yet when it wrote the golden copies."""
ADDED_METRICS = {"model/mult_adds", "time/seconds_per_epoch", "test/loss"}
"""Metrics of runs that the program did not write then."""
ADDED_PARAMS = {"optimizer.name"}
"""Hyperparameters of runs that it did not log then: a start recipe has another value than the space."""
SLOW = ("export", "promote", "sweep-lr", "train-seeds")
CHANGING = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name, output in OUTPUTS.items()
    if output.changes and name not in ALONE
]


@pytest.fixture(scope="module", autouse=True)
def utc() -> Iterator[None]:
    """Let local times be those of the process that wrote the folder: Optuna stores times without a zone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder for commands that change nothing in it."""
    return unpack(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the folder for one test."""
    return unpack(tmp_path / "old")


@dataclass(frozen=True)
class Printed:
    """The exit code of a command and its two streams."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def run(folder: Path, *arguments: object) -> Printed:
    """Run a command in a folder, within this process and without figures: imports and figures would take longest."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "FMNIST_"))]:
            del os.environ[name]
        try:
            main([*map(str, arguments)], CommandSettings(plots=False))
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Printed(code, stdout.getvalue(), stderr.getvalue())


# -------------------------------------------------------------------------------------------- --json


ADDED_KEYS = {
    "paused",
    "backend",
    "losses",
    "checkpoint_seconds",
    "heartbeat_seconds",
    "lease_seconds",
    "run_key",
    "window",
    "mult_adds",
    "seconds_per_epoch",
    "refused",
    "running",
    "selected",
    "loss",
    "trained_until",
}
"""What the output and the attributes of trials have besides what they had then."""


def differences(before: Any, now: Any, where: str = "", *, numbers: bool = True) -> list[str]:
    """Return where two values of JSON differ, key by key.

    Floats may differ in the last digits of float32. Without `numbers` only keys, lengths and types are compared. A
    recipe may have new hyperparameters, and a table the keys `ADDED_KEYS`. A value that a recipe file gives was listed
    as a default if it equalled it, and is listed as the file's now.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        added = now.keys() - before.keys() if where.endswith(".recipe") else ADDED_KEYS - before.keys()
        if list(before) != [key for key in now if key not in added]:
            return [f"{where}: keys {list(before)} became {list(now)}"]
        return [
            line for key in before for line in differences(before[key], now[key], f"{where}.{key}", numbers=numbers)
        ]
    if isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            return [f"{where}: {len(before)} entries became {len(now)}"]
        entries = ((f"{where}[{number}]", *pair) for number, pair in enumerate(zip(before, now, strict=True)))
        return [line for entry, old, new in entries for line in differences(old, new, entry, numbers=numbers)]
    if not numbers and (before is None or now is None or type(before) is type(now)):
        return []
    if isinstance(before, float) and isinstance(now, float):
        is_same = math.isclose(before, now, rel_tol=1e-5, abs_tol=1e-6)
    elif where.endswith(".origin") and before == "default":
        is_same = now == before or str(now).endswith(".toml")  # older versions did not see that a file said the same
    else:
        is_same = type(before) is type(now) and before == now
    return [] if is_same else [f"{where}: {before!r} became {now!r}"]


def assert_as_before(folder: Path, name: str) -> Printed:
    """Run a stored command in the folder, and compare what it prints with what it printed then."""
    output: Output = OUTPUTS[name]
    numbers = not output.trained or is_same_machine()
    printed = run(folder / output.folder, *output.arguments, "--json")
    assert printed.code == output.code or not numbers, printed.stderr
    assert differences(output.printed, normalised(printed.json, folder, output.volatile), numbers=numbers) == []
    return printed


@pytest.mark.parametrize("name", READING)
def test_json_of_commands_that_read(shared: Path, name: str) -> None:
    assert_as_before(shared, name)


@pytest.mark.parametrize("name", CHANGING)
def test_json_of_commands_that_change_the_folder(folder: Path, name: str) -> None:
    assert_as_before(folder, name)


def test_differences_finds_what_differs() -> None:
    before = {"a": 1, "b": [0.5, None], "c": {"d": "x"}}
    assert differences(before, json.loads(json.dumps(before))) == []
    for now in (
        {**before, "a": 2},
        {**before, "a": 1.0},
        {**before, "b": [0.5]},
        {**before, "b": [0.51, None]},
        {**before, "c": {"e": "x"}},
        {"a": 1, "b": [0.5, None]},
    ):
        assert len(differences(before, now)) == 1
    assert differences(before, {**before, "a": 7}, numbers=False) == []
    assert len(differences(before, {**before, "a": "7"}, numbers=False)) == 1


def test_differences_accepts_new_hyperparameters_of_a_recipe_and_no_other_keys() -> None:
    before = {"recipe": {"epochs": 3}}
    assert differences(before, {"recipe": {"new": 1, "epochs": 3}}) == []
    assert len(differences(before, {"recipe": {"new": 1, "epochs": 4}})) == 1
    assert len(differences(before, {"recipe": {"new": 1}})) == 1
    assert len(differences(before, {**before, "new": 1})) == 1


# ---------------------------------------------------------------------------------- what a person sees


def test_tables_of_an_old_study(shared: Path) -> None:
    best = OUTPUTS["show"].printed
    project = shared / "project"
    for arguments, texts in (
        (["status"], [OUTPUTS["status"].printed["question"], f"{best['value']:.2%}"]),
        (["leaderboard"], [f"{row['value']:.2%}" for row in OUTPUTS["leaderboard"].printed]),
        (["show"], [f"{accuracy:.2%}" for accuracy in best["curve"]] + [best["run_id"]]),
        (["leaderboard", "--by", "seconds"], [f"{row['value']:.2%}" for row in OUTPUTS["leaderboard"].printed]),
        (["leaderboard", "--pareto", "parameters"], [f"{best['value']:.2%}"]),
        (["show", "0"], [OUTPUTS["show-0"].printed["reason"]]),
    ):
        printed = run(project, *arguments)
        assert (printed.code, printed.stderr) == (0, "")
        assert all(text in printed.stdout for text in texts), printed.stdout
    printed = run(project, "leaderboard", "--pareto", "mult_adds")
    assert (printed.code, printed.stdout) == (2, "")
    assert "has this cost, which earlier versions did not record; choose seconds or parameters\n" in printed.stderr


# ------------------------------------------------------------------------------------ what is continued


def trials_of(project: Path, study: str) -> list[FrozenTrial]:
    storage = f"sqlite:///{project}/fmnist-search/optuna.db"
    return optuna.load_study(study_name=study, storage=storage).get_trials()


def store(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project}/mlflow.db")


def runs(project: Path, kind: str, study: str) -> list[MlflowRun]:
    client = store(project)
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment
    query = f"tags.kind = '{kind}' AND tags.study = '{study}'"
    found = client.search_runs([experiment.experiment_id], query, order_by=["attributes.run_name"])
    return list(found)


def accuracies(project: Path, run_id: str) -> list[tuple[int, float]]:
    """Return the steps and values of a run's validation accuracy, with every point as often as it is stored."""
    points = store(project).get_metric_history(run_id, "val/accuracy")
    return sorted((point.step, point.value) for point in points)


def names_of(project: Path, stored: MlflowRun) -> dict[str, set[str]]:
    """Return the names under which a run stores parameters, metrics, tags and artifacts."""
    artifacts = {item.path for item in store(project).list_artifacts(stored.info.run_id)}
    data = stored.data
    tags = {key for key, value in data.tags.items() if value} - ADDED_TAGS  # it wrote empty ones then
    return {
        "params": {*data.params} - ADDED_PARAMS,
        "metrics": {*data.metrics} - ADDED_METRICS,
        "tags": tags,
        "artifacts": artifacts,
    }


def attributes_of(trial: FrozenTrial) -> dict[str, dict[str, None]]:
    """Return the names under which a trial stores its attributes, and those in an attribute that is a table."""
    return {
        key: dict.fromkeys(sorted(value) if isinstance(value, dict) else ())
        for key, value in sorted(trial.user_attrs.items())
    }


def test_an_old_study_is_continued(folder: Path) -> None:
    project = folder / "project"
    old_trials = trials_of(project, "golden")
    old_runs = {old.info.run_id: old.to_dictionary() for old in runs(project, "trial", "golden")}
    old_names = [(old.data.tags["state"], names_of(project, old)) for old in runs(project, "trial", "golden")]
    (old_study,) = runs(project, "study", "golden")

    found = assert_as_before(folder, "search-continued").json

    trials = trials_of(project, "golden")
    assert trials[: len(old_trials)] == old_trials
    for trial in trials[len(old_trials) :]:
        assert any(differences(attributes_of(old), attributes_of(trial)) == [] for old in old_trials)
    assert found["new_trials"] == len(trials) - len(old_trials) == 2
    for row in found["trials"][: len(old_trials)]:
        stored = OUTPUTS[f"show-{row['number']}"].printed
        assert differences({key: stored[key] for key in row if key in stored}, row) == []

    (study,) = runs(project, "study", "golden")
    assert study.info.run_id == found["run_id"] == old_study.info.run_id
    assert study.info.status == "FINISHED"
    assert study.data.tags["ended_by"] == old_study.data.tags["ended_by"] == "trials"
    assert study.data.metrics.keys() == old_study.data.metrics.keys()
    now = {each.info.run_id: each for each in runs(project, "trial", "golden")}
    assert {run_id: now[run_id].to_dictionary() for run_id in old_runs} == old_runs
    new = [each for run_id, each in now.items() if run_id not in old_runs]
    assert [each.data.tags["trial"] for each in new] == [str(row["number"]) for row in found["trials"][-2:]]
    for each, row in zip(new, found["trials"][-2:], strict=True):
        assert each.data.tags["mlflow.parentRunId"] == study.info.run_id
        assert (each.info.run_id, each.data.tags["state"]) == (row["run_id"], row["state"])
        assert accuracies(project, each.info.run_id) == list(enumerate(row["curve"], start=1))
        assert names_of(project, each) == next(names for state, names in old_names if state == row["state"])

    champion = store(project).get_model_version_by_alias("fmnist-search", "champion")
    assert str(champion.version) == found["champion"]["version"]
    if found["champion"]["confirmed"]["trial"] < len(old_trials):  # the same finalists: they are not trained again
        assert differences(OUTPUTS["status"].printed["champion"], found["champion"]) == []
        assert len(store(project).search_model_versions("name = 'fmnist-search'")) == 2


def test_an_old_training_is_continued(folder: Path) -> None:
    project = folder / "project"
    before = OUTPUTS["reproduce"].printed
    found = assert_as_before(folder, "train-resume").json
    assert found["run_id"] != before["run"]
    assert store(project).get_run(found["run_id"]).data.tags["resumes"] == before["run"]
    curve = [(epoch["epoch"], epoch["val_accuracy"]) for epoch in found["epochs"]]
    assert accuracies(project, found["run_id"]) == curve
    assert curve[:2] == accuracies(project, before["run"])
    assert curve[:2] == [(epoch["epoch"], epoch["val/accuracy"]["was"]) for epoch in before["epochs"]]
    assert len(curve) == 4
    again = run(project, "train", "--resume", found["run_id"], "--epochs", 5, "--json").json
    assert [epoch["val_accuracy"] for epoch in again["epochs"][:4]] == [accuracy for _, accuracy in curve]


def test_an_old_outbox_is_sent_and_its_study_is_continued(folder: Path) -> None:
    project = folder / "unsent"
    waiting = OUTPUTS["sync"].printed["events"]
    assert f"{waiting} events" in run(project, "status").stdout

    assert_as_before(folder, "sync")

    assert f"{waiting} events" not in run(project, "status").stdout
    assert run(project, "sync", "--json").json == {"events": 0}
    assert_every_point_is_stored_once(project)
    old = trials_of(project, "unsent")
    (interrupted,) = [trial for trial in old if trial.user_attrs.get("outcome", {}).get("comes_again")]
    assert old[-1].state.name == "WAITING"

    found = run(project, "search", "unsent.toml", "--json").json

    assert Counter(row["state"] for row in found["trials"]) == {"completed": 6, "interrupted": 1}
    retried = found["trials"][old[-1].number]
    assert differences(interrupted.user_attrs["recipe"], retried["recipe"], ".recipe") == []
    assert retried["curve"][: len(interrupted.intermediate_values)] == list(interrupted.intermediate_values.values())
    assert_every_point_is_stored_once(project)
    (study,) = runs(project, "study", "unsent")
    assert study.info.status == "FINISHED"


def assert_every_point_is_stored_once(project: Path) -> None:
    trials = [trial for trial in trials_of(project, "unsent") if "outcome" in trial.user_attrs]
    stored = runs(project, "trial", "unsent")
    assert [each.data.tags["trial"] for each in stored] == [str(trial.number) for trial in trials]
    for each, trial in zip(stored, trials, strict=True):
        assert accuracies(project, each.info.run_id) == list(trial.intermediate_values.items())
        assert each.info.status == ("KILLED" if trial.user_attrs["outcome"]["comes_again"] else "FINISHED")
        artifacts = {item.path for item in store(project).list_artifacts(each.info.run_id)}
        assert {"recipe.toml", "model_summary.txt"} <= artifacts
