"""A disk that is full: one line that names the file, what was whole stays whole, and the same command goes on later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import torch

from fmnist_search.config.shipped_studies import copy_shipped_study
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write
from fmnist_search.results.training import Decision, EpochReport
from fmnist_search.search.storage import open_storage
from fmnist_search.sqlite_files import is_disk_full
from fmnist_search.tracking.events import Event, RunProgress
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.outbox_file import OutboxError
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.sender import Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.study_runs import open_study_run
from fmnist_search.tracking.writer import MlflowWriter
from fmnist_search.training.checkpoint import save_state, state_from_bytes
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.lookup import status
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import run_study
from fmnist_search.workflows.study.running import announced
from fmnist_search.workspace import Workspace, sqlite_uri
from tests.integration.conftest import TINY_STUDY
from tests.support.disks import fill, free_space, small_disk

pytestmark = pytest.mark.slow

NO_PLOTS = TrackingOptions(plot_interval=None)


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


def test_an_outbox_on_a_full_disk_names_itself_and_keeps_what_it_has(disk: Path) -> None:
    with closing(Outbox(disk / "outbox.db", "a store")) as outbox:
        outbox.put(Event("run", "batch"), progress=RunProgress(1))
        fill(disk)
        with pytest.raises(OutboxError) as raised:
            outbox.put(*(Event("run", "file", {}, bytes(100_000)) for _ in range(2)), progress=RunProgress(2))
        assert raised.value.lines[0].startswith(f"outbox {disk / 'outbox.db'}: cannot be written, the disk is full;")
        free_space(disk)
        assert (outbox.pending_count(), outbox.progress("run")) == (1, RunProgress(1))
        outbox.put(Event("run", "end"), progress=RunProgress(2))
        assert (outbox.pending_count(), outbox.progress("run")) == (2, RunProgress(2))


def test_what_mlflow_cannot_store_is_kept_and_sent_later(tmp_path: Path) -> None:
    messages: list[str] = []
    with small_disk(tmp_path / "disk", 4) as disk:
        uri = sqlite_uri(disk / "mlflow.db")
        store = MlflowStore(uri, "fmnist-search")
        run_id = open_study_run(store, "tiny", None).run_id
        with closing(Outbox(tmp_path / "outbox.db", uri)) as outbox:
            writer = MlflowWriter(store.client, outbox)
            with Sender(outbox, writer, messages.append, outage_notice_seconds=0) as sender:
                fill(disk)
                run = RunLogger.existing(sender, run_id)
                run.log_artifact("weights.bin", b"x" * 100_000)
                run.log_metrics({"test/accuracy": 0.5})
                assert not sender.flush(1.0)
                assert sender.problem.startswith("a disk is full")
                free_space(disk)
                assert sender.flush(20.0)
                assert outbox.rejected_counts() == {}
        assert [point.value for point in store.client.get_metric_history(run_id, "test/accuracy")] == [0.5]
        assert store.client.list_artifacts(run_id, "weights.bin") or [
            found.file_size for found in store.client.list_artifacts(run_id)
        ] == [100_000]
    assert messages[0].startswith("a disk is full")


class Messages(StudyCallback):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_message(self, message: str) -> None:
        self.lines.append(message)


def test_a_search_goes_on_where_it_stopped_once_there_is_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 40) as disk:
        (disk / "tiny.toml").write_text(TINY_STUDY)
        config = StudyConfig.load(disk / "tiny.toml", {"finalists.recipes": 0, "budget.trials": 3})
        workspace = Workspace(sqlite_uri(disk / "mlflow.db"), disk / "fmnist-search")
        epochs: list[int] = []
        messages = Messages()

        def fill_in_the_second_trial(report: EpochReport) -> Decision:
            epochs.append(report.epoch)
            if len(epochs) == 3:
                fill(disk)
            return Decision.CONTINUE

        with pytest.raises(UserError, match="the disk is full; free some space") as caught:
            run_study(
                config, workspace=workspace, tracking=NO_PLOTS, stopper=fill_in_the_second_trial, callback=messages
            )
        assert f"the disk of {disk} has" in messages.lines[0]
        assert "MB left" in messages.lines[0]
        assert str(disk) in str(caught.value)
        free_space(disk)
        summary = run_study(config, workspace=workspace, tracking=NO_PLOTS)
        assert [(trial.number, trial.state.value, trial.epochs) for trial in summary.trials] == [
            (number, "completed", 2) for number in range(3)
        ]
        client = MlflowStore(workspace.tracking_uri, "fmnist-search").client
        for trial in status(workspace=workspace).trials:
            assert trial.run_id
            assert client.get_run(trial.run_id).info.status == "FINISHED"
            points = client.get_metric_history(trial.run_id, "val/accuracy")
            assert sorted(point.step for point in points) == [1, 2]
            assert workspace.weights_path("tiny", trial.number).is_file()


def test_trials_go_on_without_checkpoints_if_these_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY_STUDY)
    settings = {"finalists.recipes": 0, "budget.trials": 2, "execution.checkpoint_seconds": 0}
    config = StudyConfig.load(tmp_path / "tiny.toml", settings)
    workspace = Workspace(sqlite_uri(tmp_path / "mlflow.db"), tmp_path / "fmnist-search")
    messages, folder = Messages(), workspace.checkpoints_folder("tiny")
    folder.mkdir(parents=True)
    with small_disk(folder.parent, 1) as disk:
        fill(disk)
        summary = run_study(config, workspace=workspace, tracking=NO_PLOTS, callback=messages)
    assert [trial.state.value for trial in summary.trials] == ["completed"] * 2
    (line,) = (line for line in messages.lines if "no checkpoint" in line)
    assert f"no checkpoint can be written to {folder} (No space left on device)" in line
