"""What other processes ask of a search through Optuna's storage: to try a recipe next, to end a trial, to stop."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from fmnist_search import run_study
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.results.study import StopReason, StudySummary, TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workspace import Workspace
from tests.integration.conftest import CommandResult, run_command
from tests.integration.workflows.test_background import AfterEpochs, search, wait_until
from tests.support.postgresql import postgresql_server


class Recorder(AfterEpochs):
    """Runs commands once, after the first epoch of a trial, and keeps what they print and what the search says."""

    def __init__(self, folder: Path, trial: str, *commands: list[object]) -> None:
        super().__init__(trial, self._run)
        self._folder, self._commands = folder, commands
        self.results: list[CommandResult] = []
        self.messages: list[str] = []

    def _run(self) -> None:
        if not self.results:
            self.results = [run_command(self._folder, *command) for command in self._commands]

    def on_message(self, text: str) -> None:
        self.messages.append(text)


def test_a_running_search_takes_a_recipe_and_ends_a_trial(tiny: Path) -> None:
    callback = Recorder(
        tiny.parent,
        "000",
        ["enqueue", "--set", "batch_size=100", "--set", "model.depth=2", "--json"],
        ["stop", "tiny", "--trial", 0],
        ["stop", "--trial", 7],
        ["studies", "delete", "tiny", "--yes"],
    )
    summary = search(tiny, callback, **{"budget.epochs": 4, "budget.trials": 2})
    queued, stopped, unknown, deleted = callback.results
    assert queued.exit_code == stopped.exit_code == 0, queued.stderr + stopped.stderr
    assert (queued.json["recipe"], queued.json["outside"]) == ("batch_size=100, model.depth=2", [])
    assert queued.json["searched_by"]
    assert stopped.stdout == "tiny: trial 0 ends as pruned after its epoch; the search goes on\n"
    assert "--trial 7: is not running in study 'tiny'; running or paused are 0" in unknown.stderr
    assert "study 'tiny': is searched by" in deleted.stderr
    first, second = summary.trials
    assert (first.state, first.epochs) == (TrialState.PRUNED, 2)
    assert first.reason == "was stopped by `fmnist-search stop` after epoch 2"
    assert second.state is TrialState.COMPLETED
    assert (second.recipe.batch_size, second.recipe.to_flat_dict()["model.depth"]) == (100, 2)
    assert callback.messages[-1] == "tiny: batch_size=100, model.depth=2 is tried next"


def test_a_paused_trial_is_ended(tiny: Path) -> None:
    class StopPaused(Recorder):
        def on_trial_end(self, trial: TrialRecord) -> None:
            if trial.state is TrialState.PAUSED:
                self._run()

    callback = StopPaused(tiny.parent, "-", ["stop", "--trial", 0])
    overrides = {"sampler": "freeze-thaw", "pruner": "none", "budget.epochs": 3, "budget.trials": 2}
    summary = search(tiny, callback, **overrides)
    (stopped,) = callback.results
    assert stopped.exit_code == 0, stopped.stderr
    ended = summary.trials[0]
    assert (ended.state, ended.epochs) == (TrialState.PRUNED, 1)
    assert ended.reason == "was stopped by `fmnist-search stop`"


def test_a_recipe_waits_for_the_next_search(tiny: Path) -> None:
    folder = tiny.parent
    search(tiny, StudyCallback(), **{"budget.trials": 1})
    for words, text in (
        (["--set", "model.width_1=5"], "model.width_1=5: model.width_1 = 5, and the space has"),
        (["--set", "seed=1"], "--set seed: is the same in all trials of a study"),
        (["--set", "model.wdith_1=4"], "wdith_1"),
        (["lenet"], "model.family = "),
        ([], "gives neither a recipe nor a value"),
        (["--set", "batch_size=50", "--study", "tyni"], "study 'tyni': does not exist here; did you mean 'tiny'?"),
    ):
        refused = run_command(folder, "enqueue", *words)
        assert refused.exit_code == 2, words
        assert text in refused.stderr
    (folder / "mine.toml").write_text('batch_size = 50\n[model]\nfamily = "cnn"\ndepth = 1\nwidth_1 = 4\n')
    queued = run_command(folder, "enqueue", "mine.toml", "--study", "tiny", "--set", "model.kernel_1=5")
    assert "mine.toml: " in queued.stderr
    assert "; widen the space, or allow it with start.outside = 'try'" in queued.stderr
    words = ["--set", "model.depth=1", "--set", "model.width_1=4", "--set", "model.kernel_1=5"]
    assert run_command(folder, "enqueue", *words).stdout.endswith(
        " is the next trial, taken by the next search, which needs more --trials\n"
    )
    summary = search(tiny, StudyCallback(), **{"budget.trials": 2})
    flat = summary.trials[1].recipe.to_flat_dict()
    assert (flat["model.depth"], flat["model.width_1"], flat["model.kernel_1"]) == (1, 4, 5)
    assert len(search(tiny, StudyCallback(), **{"budget.trials": 3}).trials) == 3  # it was taken once


def test_a_search_that_takes_no_signals_is_stopped_through_the_storage(tiny: Path) -> None:
    began, summaries = threading.Event(), list[StudySummary]()
    callback = AfterEpochs("001", began.set)
    changes = {"budget.trials": 200, "budget.epochs": 3}
    thread = threading.Thread(target=lambda: summaries.append(search(tiny, callback, **changes)))
    thread.start()
    try:
        wait_until(began.is_set)
        stopped = run_command(tiny.parent, "stop")
    finally:
        thread.join()
    assert stopped.exit_code == 0, stopped.stderr
    assert "was asked to stop after its running epochs; nothing is lost\ntiny: has stopped" in stopped.stdout
    (summary,) = summaries
    assert summary.stop_reason is StopReason.INTERRUPTED
    last = summary.trials[-1]
    assert last.state in (TrialState.INTERRUPTED, TrialState.COMPLETED)  # the epoch that runs may be its last one
    count = len(summary.trials)
    continued = search(tiny, StudyCallback(), **{**changes, "budget.trials": count}).trials
    assert len(continued) == count
    assert continued[-1].curve[: last.epochs] == last.curve
    assert continued[-1].state is TrialState.COMPLETED


@pytest.mark.slow
def test_another_machine_asks_through_postgresql(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other machine"  # no file is shared
    other.mkdir()
    began, summaries = threading.Event(), list[StudySummary]()
    changes = {"budget.trials": 200, "budget.epochs": 40, "finalists.recipes": 0, "sampler": "random"}
    with postgresql_server() as server:
        storage = ("--storage", server.create_database())
        workspace = Workspace.resolve(f"sqlite:///{tiny.parent / 'mlflow.db'}", storage=storage[1])
        untracked = TrackingOptions(enabled=False)

        def search_in_thread() -> None:
            config, callback = StudyConfig.load(tiny, changes), AfterEpochs("000", began.set)
            summaries.append(run_study(config, workspace=workspace, tracking=untracked, callback=callback))

        thread = threading.Thread(target=search_in_thread)
        thread.start()
        try:
            wait_until(began.is_set)
            queued = run_command(other, "enqueue", "--set", "batch_size=100", "--set", "model.depth=2", *storage)
            ended = run_command(other, "stop", "tiny", "--trial", 0, *storage)
            refused = run_command(other, "studies", "rename", "tiny", "new", "--yes", *storage)
        finally:
            stopped = run_command(other, "stop", "tiny", *storage)
            thread.join()
        assert "is the next trial" in queued.stdout, queued.stderr
        assert ended.stdout == "tiny: trial 0 ends as pruned after its epoch; the search goes on\n", ended.stderr
        assert "study 'tiny': is searched by" in refused.stderr
        assert "tiny: has stopped" in stopped.stdout, stopped.stderr
        (summary,) = summaries
        assert summary.stop_reason is StopReason.INTERRUPTED
        first, second, *_ = summary.trials
        assert (first.state, second.recipe.batch_size) == (TrialState.PRUNED, 100)

        exported = run_command(tiny.parent, "studies", "export", "tiny", "--output", "out", *storage)
        assert len(json.loads((tiny.parent / "out/trials.json").read_text())) == len(summary.trials), exported.stderr
        renamed = run_command(tiny.parent, "studies", "rename", "tiny", "new", "--yes", *storage)
        assert renamed.exit_code == 0, renamed.stderr
        assert run_command(other, "status", "new", *storage).exit_code == 0
        deleted = run_command(tiny.parent, "studies", "delete", "new", "--yes", *storage)
        assert deleted.exit_code == 0, deleted.stderr
        assert run_command(other, "status", "new", *storage).exit_code == 2
