"""What can be done with a study: run it, promote its best, preview it, look at it."""

from __future__ import annotations

import dataclasses
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fmnist_search.config.sections import Finalists
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.execution.pool import fitting
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import ModelSummary
from fmnist_search.results.study import (
    Champion,
    Ending,
    Importances,
    Listener,
    Observer,
    Silence,
    StudySummary,
    mean_overhead,
)
from fmnist_search.search.analysis import edges
from fmnist_search.search.preview import sketches
from fmnist_search.search.study_store import Ledger
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import with_runs
from fmnist_search.tracking.store import Tracking, reaching
from fmnist_search.tracking.ui import run_page
from fmnist_search.training.autotune import measure_rate
from fmnist_search.training.trial import watch_nothing
from fmnist_search.workflows.jobs import sending
from fmnist_search.workflows.study.search_loop import spent
from fmnist_search.workflows.study.session import conditions_of, execution_of, open_session
from fmnist_search.workspace import Home

SYNC_PATIENCE = 15.0
"""Seconds to wait for a store that has gone."""
BACKWARD_PASSES = 3
"""A training step costs about as much as three forward passes."""


def run_study(
    config: StudyConfig,
    *,
    tracking_uri: str | None = None,
    workdir: str | None = None,
    data_dir: str | Path | None = None,
    fresh: bool = False,
    tracked: bool = True,
    observer: Observer = watch_nothing,
    listener: Listener | None = None,
) -> StudySummary:
    """Run a study to the end of its budget, or go on with it where it stopped, and find its champion.

    Every trial is a run in MLflow. The observer sees each epoch of every trial and may end it; the listener hears
    what happens. With `fresh`, an earlier study of that name is put aside. What is not `tracked` leaves nothing in
    MLflow, and has no champion.

    Raises:
        UserError: no images, no such device, a store out of reach, or a stored study that searches something else.
    """
    home = Home.find(tracking_uri, workdir)
    with open_session(
        home, config, data_dir, listener or Silence(), fresh=fresh, searching=True, tracked=tracked
    ) as session:
        session.introduce()
        ledger = session.ledger
        started, before = time.monotonic(), len(ledger.rows())
        ending = session.search(observer)
        champion = session.find_champion(config.finalists, again=False) if ending.is_final else None
        if session.desk.interruption.requested:
            ending = Ending.INTERRUPTED
        summary = _summary(home, ledger, ending, len(ledger.rows()) - before, time.monotonic() - started, champion)
        session.close(summary)
    return summary


def promote(
    name: str,
    *,
    settings: Finalists | None = None,
    tracking_uri: str | None = None,
    workdir: str | None = None,
    data_dir: str | Path | None = None,
    listener: Listener | None = None,
) -> StudySummary:
    """Confirm the best recipes of a study anew, and register the chosen one's model.

    `settings` are the study file's own where none are given.

    Raises:
        UserError: there is no such study, or it has no completed trial.
    """
    home = Home.find(tracking_uri, workdir)
    ledger = Ledger.find(home.storage_url, name)
    if _summary(home, ledger, Ending.OPEN).best is None:
        raise UserError(f"study {name!r}: has no completed trial to promote; search on first", exit_code=3)
    with open_session(home, ledger.config, data_dir, listener or Silence()) as session:
        config = ledger.config
        champion = session.find_champion((settings or config.finalists).of(config.data.dataset), again=True)
        ending = Ending.INTERRUPTED if session.desk.interruption.requested else _state_of(ledger)
        summary = _summary(home, ledger, ending, champion=champion)
        session.close(summary)
    return summary


@dataclass(frozen=True)
class Preview:
    """What a study would do: its first recipes with their networks, and how long it would train at most."""

    recipes: tuple[tuple[Recipe, ModelSummary], ...]
    seconds: float | None


def preview(config: StudyConfig, count: int = 5) -> Preview:
    """Draw the first recipes of a study without starting it, and estimate its time if no trial were pruned.

    The estimate takes the multiply-adds of the drawn networks at the rate of a short measurement of this machine.

    Raises:
        UserError: a drawn network is refused, or there is no such device.
    """
    conditions = conditions_of(config, execution_of(config))
    drawn = list(sketches(config, conditions.precision, count))
    recipes = tuple((sketch.recipe, sketch.summary) for sketch in drawn)
    limit = config.budget.minutes * 60 if config.budget.minutes else None
    if config.budget.trials is None:
        return Preview(recipes, limit)
    workers, _ = fitting(config.execution.workers, conditions.execution, [sketch.step_bytes for sketch in drawn])
    mult_adds = statistics.fmean(sketch.summary.mult_adds for sketch in drawn)
    passes = BACKWARD_PASSES * config.data.training_count + config.data.validation
    epochs = config.budget.trials * config.budget.epochs
    seconds = epochs * passes * mult_adds / measure_rate(conditions.execution, conditions.precision) / workers
    return Preview(recipes, min(seconds, limit or seconds))


def status(name: str, *, tracking_uri: str | None = None, workdir: str | None = None) -> StudySummary:
    """A study as it stands, read from Optuna alone.

    Raises:
        UserError: there is no such study.
    """
    home = Home.find(tracking_uri, workdir)
    ledger = Ledger.find(home.storage_url, name)
    return _summary(home, ledger, _state_of(ledger))


@dataclass(frozen=True)
class Unsent:
    """Events on their way to MLflow: how many wait, and how many it refused, by reason."""

    waiting: int
    refused: dict[str, int]


def unsent(*, tracking_uri: str | None = None, workdir: str | None = None) -> Unsent:
    """What MLflow has not got of the record."""
    home = Home.find(tracking_uri, workdir)
    if not home.outbox.exists():
        return Unsent(0, {})
    with closing(Outbox(home.outbox, home.tracking_uri)) as outbox:
        return Unsent(outbox.waiting(), outbox.refused())


def sync(
    *,
    forget: bool = False,
    tracking_uri: str | None = None,
    workdir: str | None = None,
) -> int:
    """Send MLflow what it has not got, and what it refused once more; gives the number of events.

    With `forget`, what it refused is dropped instead.

    Raises:
        UserError: MLflow is out of reach, or refuses some of it.
    """
    home = Home.find(tracking_uri, workdir)
    if not home.outbox.exists():
        return 0
    with reaching(home.tracking_uri):
        tracking = Tracking(home.tracking_uri, "fmnist-search")
        with closing(Outbox(home.outbox, home.tracking_uri)) as outbox:
            if forget:
                outbox.forget_refused()
            else:
                outbox.try_again()
            events = outbox.waiting()
            with sending(home, tracking, Silence()) as sender:
                arrived = sender.flush(SYNC_PATIENCE)
            refused = outbox.refused()
    if not arrived:
        raise UserError("sync: MLflow has gone out of reach; nothing is lost, run it again")
    if refused:
        raise UserError(
            *(f"sync: MLflow refuses {count} events: {reason}" for reason, count in refused.items()),
            "sync: mend what it names and run it again, or drop them with --forget",
        )
    return events


def importance(name: str, *, tracking_uri: str | None = None, workdir: str | None = None) -> Importances:
    """Which hyperparameters of a study decide; UserError where it is not there, or too few of its trials completed."""
    return Ledger.find(Home.find(tracking_uri, workdir).storage_url, name).importances()


def all_studies(*, tracking_uri: str | None = None, workdir: str | None = None) -> list[StudySummary]:
    """Every study of a folder as it stands; none where nothing was ever run there."""
    url = Home.find(tracking_uri, workdir).storage_url
    try:
        names = Ledger.names(url)
    except UserError:
        return []
    return [status(name, tracking_uri=tracking_uri, workdir=workdir) for name in names]


def page_of(run_id: str, *, tracking_uri: str | None = None, workdir: str | None = None) -> str | None:
    """The address of a run's page in the MLflow UI; None where the store does not know the run."""
    uri = Home.find(tracking_uri, workdir).tracking_uri
    with reaching(uri):
        experiment = Tracking(uri, "fmnist-search").experiment_of(run_id)
    server = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    return run_page(server, experiment, run_id) if experiment else None


def config_of(name: str, *, tracking_uri: str | None = None, workdir: str | None = None) -> StudyConfig:
    """The configuration with which a study last ran; UserError where there is no such study."""
    return Ledger.find(Home.find(tracking_uri, workdir).storage_url, name).config


def latest_study(*, tracking_uri: str | None = None, workdir: str | None = None) -> str:
    """The name of the study that was begun last; UserError where there is none."""
    home = Home.find(tracking_uri, workdir)
    names = Ledger.names(home.storage_url)
    if not names:
        raise UserError(f"{home.folder}: holds no study yet; run `fmnist-search search studies/quick.toml` first")
    return names[-1]


def latest_run(*, tracking_uri: str | None = None, workdir: str | None = None) -> str | None:
    """The MLflow run of the study that was begun last; None where there is no study."""
    url = Home.find(tracking_uri, workdir).storage_url
    try:
        return Ledger.find(url, Ledger.names(url)[-1]).run_id
    except (UserError, IndexError):
        return None


def _summary(
    home: Home,
    ledger: Ledger,
    ending: Ending,
    new_trials: int = 0,
    seconds: float = 0.0,
    champion: Champion | None = None,
) -> StudySummary:
    known, rows = ledger.champion, with_runs(home, ledger.rows())
    summary = StudySummary(
        name=ledger.config.name,
        question=ledger.config.question,
        trials=tuple(rows),
        ended_by=ending,
        new_trials=new_trials,
        seconds=seconds,
        run_id=ledger.run_id,
        champion=champion or (known[1] if known else None),
        overhead=mean_overhead(rows, ledger.tracking_seconds),
        searched_seconds=ledger.searched_seconds,
    )
    return dataclasses.replace(summary, edges=edges(summary.leaders, ledger.config.space))


def _state_of(ledger: Ledger) -> Ending:
    """Whether a study that does not run has reached a limit."""
    ending = spent(ledger.config, ledger.rows(), ledger.searched_seconds)
    return ending or (Ending.EXHAUSTED if ledger.is_exhausted else Ending.OPEN)
