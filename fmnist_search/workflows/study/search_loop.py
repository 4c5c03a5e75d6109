"""The search of a study: trial after trial is asked, trained by a worker, and told, until something ends it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import optuna

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.data.loading import Images
from fmnist_search.execution.pool import Crew
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import Decision, Ending, EpochReport, Observer, Overhead, State, TrialResult, TrialRow
from fmnist_search.search.samplers import SURVIVOR_OF
from fmnist_search.search.study_store import Ledger
from fmnist_search.search.suggest import searched
from fmnist_search.tracking.run_logger import Run, TrainingRun
from fmnist_search.training.checkpoint import save_state
from fmnist_search.workflows.jobs import Desk, Tracked, overhead_of, unbegun
from fmnist_search.workflows.study.run_logging import Logbook
from fmnist_search.workspace import Home

DUPLICATES_IN_A_ROW = 50
"""As many draws of known recipes in a row say that the space holds no other."""


class Search:
    """The trials of a study while they are made: those that ended, and those that run."""

    def __init__(
        self,
        ledger: Ledger,
        images: Images,
        home: Home,
        study_run: Run,
        logbook: Logbook,
        desk: Desk,
        observer: Observer,
    ):
        self.ledger = ledger
        self.images = images
        self.home = home
        self.study_run = study_run
        self.logbook = logbook
        self.desk = desk
        self.observer = observer
        self.names = searched(ledger.config.space)
        self._rows = ledger.rows()
        self._known = {row.recipe.key(): row for row in self._rows if _answers(row)}
        self._running: dict[str, SearchTrial] = {}
        self._twins: list[tuple[optuna.Trial, Recipe]] = []
        self._duplicates = 0
        self._addresses: list[str] = []
        self._searched_before = ledger.searched_seconds
        self._started = time.monotonic()

    def run(self, crew: Crew) -> Ending:
        """Search until something ends the study; says what. Trials that still run then are trained to their ends."""
        self.desk.listener.study_opened(self._rows, self._searched_before)
        try:
            crew.run(self._next)
        except BaseException as error:
            crew.stop()
            impatient = isinstance(error, KeyboardInterrupt)
            self._abandon("interrupted in the middle of an epoch" if impatient else "the study stopped on an error")
            if not impatient:
                raise
            self.desk.interruption.requested = True
        self._abandon("an equal trial was interrupted")
        ending = self._limit() or Ending.INTERRUPTED
        self.ledger.searched_seconds = self._seconds()
        return ending

    @property
    def tracking_seconds(self) -> float:
        """How long the record of its trials took the sender."""
        return sum(map(self.desk.sender.seconds_of, self._addresses))

    def ended(self, trial: SearchTrial, row: TrialRow) -> None:
        """Take in a trial that has been told."""
        del self._running[trial.recipe.key()]
        self._rows.append(row)
        if _answers(row):
            self._known[trial.recipe.key()] = row
        if row.state is State.INTERRUPTED:
            self.desk.interruption.requested = True
        self.ledger.searched_seconds = self._seconds()
        self.desk.listener.trial_ended(row)
        self.logbook.trial_ended(self._rows)

    def _next(self) -> SearchTrial | None:
        """The next trial to train; None while there is none."""
        while True:
            asked = time.monotonic()
            trial, recipe = self._parted_twin() or (None, None)
            if trial is None or recipe is None:
                if self.ledger.must_wait or self._limit():
                    return None
                trial, recipe = self.ledger.ask()
            if recipe.key() in self._running:
                self._twins.append((trial, recipe))
                self._duplicates += 1
            elif (same := self._same(trial, recipe)) is not None:
                self._rows.append(self.ledger.tell_duplicate(trial, same))
                self._duplicates += 1
            else:
                self._duplicates = 0
                return self._begun(trial, recipe, time.monotonic() - asked)

    def _begun(self, trial: optuna.Trial, recipe: Recipe, seconds: float) -> SearchTrial:
        try:
            begun = self._running[recipe.key()] = SearchTrial(self, trial, recipe, seconds)
            self._addresses.append(begun.run.address)
        except BaseException:  # the record cannot be kept: it comes again
            self._twins.append((trial, recipe))
            raise
        return begun

    def _parted_twin(self) -> tuple[optuna.Trial, Recipe] | None:
        """A trial that was asked while an equal one ran, which has ended since."""
        answered = self._known if self.desk.interruption.requested else None  # nothing is begun any more
        parted = next(
            (
                (trial, recipe)
                for trial, recipe in self._twins
                if recipe.key() not in self._running and (answered is None or recipe.key() in answered)
            ),
            None,
        )
        if parted:
            self._twins.remove(parted)
        return parted

    def _same(self, trial: optuna.Trial, recipe: Recipe) -> TrialRow | None:
        return None if SURVIVOR_OF in trial.user_attrs else self._known.get(recipe.key())

    def _limit(self) -> Ending | None:
        if self.desk.interruption.requested:
            return Ending.INTERRUPTED
        ending = spent(self.ledger.config, self._rows, self._seconds(), len(self._running) + len(self._twins))
        if ending is None and (self._duplicates >= DUPLICATES_IN_A_ROW or self.ledger.is_exhausted):
            return Ending.EXHAUSTED
        return ending

    def _seconds(self) -> float:
        return self._searched_before + time.monotonic() - self._started

    def _abandon(self, reason: str) -> None:
        for trial in list(self._running.values()):
            del self._running[trial.recipe.key()]
            self._rows.append(trial.abandon(reason))
        for twin, _ in self._twins:
            self._rows.append(self.ledger.tell(twin, unbegun(reason), ""))
        self._twins.clear()


class SearchTrial(Tracked):
    """One trial: trained, pruned where that is advised, and written down wherever it ends."""

    def __init__(self, search: Search, trial: optuna.Trial, recipe: Recipe, seconds: float):
        self._search = search
        name = f"{trial.number:03d} {recipe.label}"
        tags = _tags(search.ledger, trial)
        super().__init__(
            name,
            recipe,
            search.images,
            TrainingRun.begun(search.desk.sender, name, recipe, search.names, tags, search.study_run),
            search.desk,
            search.observer,
        )
        self._trial = trial
        self._row: TrialRow | None = None
        self._sampling = seconds
        self._started = time.monotonic()
        self._out_of_time = False

    def decide(self, report: EpochReport) -> Decision:
        """What the pruner says, the trial's own limit of time, and then the observer."""
        started = time.monotonic()
        advised = self._search.ledger.should_prune(self._trial, report)
        self._sampling += time.monotonic() - started
        if advised:
            return Decision.PRUNE
        limit = self._search.ledger.config.budget.trial_minutes or math.inf
        self._out_of_time = time.monotonic() - self._started >= limit * 60
        return Decision.PRUNE if self._out_of_time else super().decide(report)

    def end(self, result: TrialResult, seconds: float) -> None:
        """Tell Optuna, complete the record, and keep the weights of a trial that completed."""
        if self._out_of_time and result.state is State.PRUNED:
            limit = self._search.ledger.config.budget.trial_minutes
            reason = f"its {limit:g} minutes were spent after epoch {len(result.epochs)}"
            result = dataclasses.replace(result, reason=reason)
        overhead = overhead_of(result, seconds, self._sampling)
        row = self._tell(result, overhead)
        self.close(result, overhead)
        if result.state is State.COMPLETED and result.weights:
            save_state(self._search.home.weights(self._search.ledger.config.name, row.number), result.weights)
        self._search.ended(self, row)

    def lost(self, reason: str) -> None:
        """The worker has died over it: failed, and once tried again."""
        result = self.broken_off(State.FAILED, reason)
        row = self._tell(result, lost=True)
        self.close(result)
        if row.comes_again:
            self._search.desk.listener.say(f"{self.name}: {reason}; it is tried again")
        self._search.ended(self, row)

    def abandon(self, reason: str) -> TrialRow:
        """It is not waited for; it comes again when the study goes on, unless it was told before the study stopped."""
        if self._row:
            return self._row
        result = self.broken_off(State.INTERRUPTED, reason)
        row = self._tell(result)
        self.close(result)
        return row

    def _tell(self, result: TrialResult, overhead: Overhead = Overhead(), *, lost: bool = False) -> TrialRow:  # noqa: B008
        run = self.run.run_id or self.run.address
        self._row = self._search.ledger.tell(self._trial, result, run, overhead, lost=lost)
        return self._row


def _tags(ledger: Ledger, trial: optuna.Trial) -> dict[str, str]:
    assert ledger.conditions is not None
    tags = {
        "study": ledger.config.name,
        "kind": "trial",
        "trial": str(trial.number),
        "device": ledger.conditions.execution.device,
    }
    also = {name: trial.user_attrs[name] for name in ("retry_of", "start", SURVIVOR_OF) if name in trial.user_attrs}
    return tags | {name: str(value) for name, value in also.items()}


def spent(config: StudyConfig, rows: Sequence[TrialRow], seconds: float, running: int = 0) -> Ending | None:
    """Which limit is reached, after these trials and so many seconds of searching; None if none is."""
    counted = [row for row in rows if row.is_final and row.duplicate_of is None]
    completed = [(row.value or 0.0, -place) for place, row in enumerate(counted) if row.state is State.COMPLETED]
    best, place = max(completed, default=(0.0, 0))
    budget = config.budget
    reached = {
        Ending.FAILURES: (sum(row.state is State.FAILED and row.duplicate_of is None for row in rows), budget.failures),
        Ending.TARGET: (best, budget.target),
        Ending.TRIALS: (len(counted) + running, budget.trials),
        Ending.EPOCHS: (sum(row.epochs for row in counted), budget.total_epochs),
        Ending.MINUTES: (seconds / 60, budget.minutes),
        Ending.PATIENCE: (len(counted) - 1 + place if completed else len(counted), budget.patience),
    }
    return next((ending for ending, (spent, limit) in reached.items() if limit is not None and spent >= limit), None)


def _answers(row: TrialRow) -> bool:
    """Whether a later equal recipe can be answered from this trial."""
    return row.state in (State.COMPLETED, State.PRUNED) and row.value is not None and row.duplicate_of is None
