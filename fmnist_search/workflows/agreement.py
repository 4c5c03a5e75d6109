"""The agreement of Optuna's storage and MLflow about a study: the trials, their runs, and what differs.

Both stores hold each trial. A process that is killed between two writes leaves them different, and so does a folder or
a database that is restored from an older copy. `compare` only compares two listings; `repairing` makes and mends them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from fmnist_search.registry.study_versions import StudyVersion
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.run_listing import ListedRun
from fmnist_search.tracking.training_run_logger import RUN_STATUS

TRAINED_STATES = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED)


class Disagreement(Enum):
    """What can differ. `doctor --json` prints the values, so they do not change."""

    RUN_OPEN = "run-open"
    RUN_STATUS = "run-status"
    RUN_WITHOUT_TRIAL = "run-without-trial"
    RUN_MISSING = "run-missing"
    POINTS_MISSING = "points-missing"
    POINTS_UNKNOWN = "points-unknown"
    POINTS_DIFFER = "points-differ"
    POINTS_TWICE = "points-twice"
    TRIAL_OPEN = "trial-open"
    WEIGHTS_MISSING = "weights-missing"
    CHECKPOINT_LEFT = "checkpoint-left"
    VERSION_UNDECIDED = "version-undecided"
    VERSION_UNTESTED = "version-untested"
    VERSION_TWICE = "version-twice"
    EVENTS_PENDING = "events-pending"
    STUDY_RUN_MISSING = "study-run-missing"
    MLFLOW_UNREACHABLE = "mlflow-unreachable"


@dataclass(frozen=True)
class Finding:
    """One difference. `remedy` says what the user can do about one that `doctor --repair` leaves; empty for others.

    `subject` is a trial, a run, a model version or the study, in words.
    """

    kind: Disagreement
    subject: str
    text: str
    trial: int | None = None
    run_id: str | None = None
    remedy: str = ""

    @property
    def is_repairable(self) -> bool:
        """Whether `doctor --repair` sets it right."""
        return not self.remedy

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class StudyListing:
    """The trials of a study, its files, and the runs below its run.

    `open_trials` are the numbers of the trials that run, listed before `trials`, which have ended or wait to go on.
    `needed_weights` are the trials whose weights the study needs, `stored_weights` and `checkpoints` those with a file.

    `driver` is the identity of the process that searches or promotes the study, or None. `pending` are the keys of the
    runs of which the outbox holds events. Runs that began at `listed_ms` or later are not judged.
    """

    trials: Sequence[TrialRecord]
    open_trials: Collection[int] = ()
    runs: Sequence[ListedRun] = ()
    needed_weights: Collection[int] = ()
    stored_weights: Collection[int] = ()
    checkpoints: Collection[int] = ()
    pending: Collection[str] = ()
    listed_ms: float = math.inf
    driver: str | None = None

    def runs_by_trial(self) -> dict[int, ListedRun]:
        """Return the run of each trial that has one of its own."""
        runs = {name: run for run in self.runs for name in (run.key, run.run_id)}
        return {trial.number: runs[trial.run_id] for trial in self.own_trials if trial.run_id in runs}

    @property
    def own_trials(self) -> list[TrialRecord]:
        """The trials that do not run and were not answered from an earlier one, whose run they share."""
        return [trial for trial in self.trials if trial.duplicate_of is None and trial.number not in self.open_trials]

    def is_delivered(self, run: ListedRun) -> bool:
        """Whether MLflow has all that was sent of a run, which was not deleted."""
        return run.is_active and run.started_ms < self.listed_ms and not {run.key, run.run_id} & set(self.pending)

    def is_abandoned(self, run: ListedRun) -> bool:
        """Whether a run is open, and no process writes it any more."""
        if not run.is_open or not self.is_delivered(run) or run.process_ended is False:
            return False
        is_driven = run.kind == tag_names.STUDY_RUN or run.tags.get(tag_names.PROCESS) == self.driver
        return self.driver is None or not is_driven


def compare(listing: StudyListing, *, tracked: bool = True) -> list[Finding]:
    """Return what differs; without `tracked`, the runs are not looked at."""
    findings = list(_compare_files(listing))
    if listing.driver is None:
        findings += [
            Finding(Disagreement.TRIAL_OPEN, f"trial {number}", "runs, but nothing searches the study", number)
            for number in sorted(listing.open_trials)
        ]
    if not tracked:
        return findings
    runs = listing.runs_by_trial()
    for trial in listing.own_trials:
        findings += _compare_trial(trial, runs.get(trial.number), listing)
    owned = {run.run_id for run in runs.values()}
    for run in listing.runs:
        if run.run_id not in owned and (listing.is_abandoned(run) or not run.is_open) and listing.is_delivered(run):
            findings += _compare_other_run(run, listing)
    return findings


def compare_versions(versions: Sequence[StudyVersion]) -> list[Finding]:
    """Return which versions of a study their promotions have left unfinished, or registered twice."""
    findings = []
    for version in versions:
        if version.is_abandoned:
            text = "was registered, but its promotion ended before it decided about the alias"
            findings.append(Finding(Disagreement.VERSION_UNDECIDED, version.uri, text))
        if not version.is_tested:
            remedy = f"`fmnist-search evaluate {version.uri}` does it"
            text = "was not evaluated on the test images"
            findings.append(Finding(Disagreement.VERSION_UNTESTED, version.uri, text, remedy=remedy))
    first: dict[tuple[str, str], StudyVersion] = {}
    for version in versions:
        if version.promotion and (other := first.setdefault((version.model, version.promotion), version)) != version:
            text = f"comes from the same promotion as version {other.number}"
            remedy = "delete one of the two in MLflow"
            findings.append(Finding(Disagreement.VERSION_TWICE, version.uri, text, remedy=remedy))
    return findings


def _compare_files(listing: StudyListing) -> Iterator[Finding]:
    runs = {trial.number: trial.run_id for trial in listing.trials}
    for number in sorted(set(listing.needed_weights) - set(listing.stored_weights)):
        remedy = f"`fmnist-search train --from-run {runs.get(number) or 'RUN'}` trains the recipe again"
        text = "has completed, but the file with its weights is missing"
        yield Finding(Disagreement.WEIGHTS_MISSING, f"trial {number}", text, number, remedy=remedy)
    ended = {trial.number: trial for trial in listing.trials if trial.state in TRAINED_STATES}
    for number in sorted(set(listing.checkpoints) & ended.keys() - set(listing.open_trials)):
        text = f"{_has_ended(ended[number])}, but its checkpoint is left"
        yield Finding(Disagreement.CHECKPOINT_LEFT, f"trial {number}", text, number)


def _compare_trial(trial: TrialRecord, run: ListedRun | None, listing: StudyListing) -> Iterator[Finding]:
    """Compare a trial that does not run with its run, None if MLflow lacks it.

    A trial without a key of a run was not tracked. A run that was deleted in MLflow stays deleted.
    """
    subject, number = f"trial {trial.number}", trial.number
    if run is None:
        if trial.run_id and trial.run_id not in listing.pending and trial.state in TRAINED_STATES:
            text = f"{_has_ended(trial)}, but MLflow has no run {trial.run_id}"
            yield Finding(Disagreement.RUN_MISSING, subject, text, number, trial.run_id)
        return
    has_ended = trial.state in TRAINED_STATES  # another may have begun to go on since it was listed
    if not listing.is_delivered(run) or not (has_ended or listing.is_abandoned(run)):
        return
    expected = RUN_STATUS[trial.state]
    if run.status != expected:
        kind = Disagreement.RUN_OPEN if run.is_open else Disagreement.RUN_STATUS
        text = f"{_has_ended(trial)}, but its run {run.run_id} is {run.status} instead of {expected}"
        yield Finding(kind, subject, text, number, run.run_id)
    if has_ended:
        yield from _compare_points(trial, run)


def _compare_points(trial: TrialRecord, run: ListedRun) -> Iterator[Finding]:
    subject, number = f"trial {trial.number}", trial.number
    optuna, mlflow = dict(enumerate(trial.curve, start=1)), run.curve
    if missing := sorted(optuna.keys() - mlflow.keys()):
        text = f"its run {run.run_id} lacks the validation accuracy of {_epochs(missing)}"
        yield Finding(Disagreement.POINTS_MISSING, subject, text, number, run.run_id)
    differing = [epoch for epoch in optuna.keys() & mlflow.keys() if not math.isclose(optuna[epoch], mlflow[epoch])]
    if differing:
        text = f"its run {run.run_id} has another validation accuracy of {_epochs(sorted(differing))}"
        yield Finding(Disagreement.POINTS_DIFFER, subject, text, number, run.run_id)
    if twice := sorted({epoch for (epoch, _), count in Counter(run.points).items() if count > 1}):
        text = f"its run {run.run_id} has the validation accuracy of {_epochs(twice)} more than once"
        remedy = "MLflow cannot remove a point"
        yield Finding(Disagreement.POINTS_TWICE, subject, text, number, run.run_id, remedy)
    if unknown := sorted(mlflow.keys() - optuna.keys()):
        text = f"its run {run.run_id} has a validation accuracy of {_epochs(unknown)}, which Optuna does not have"
        remedy = "neither store can remove it; Optuna's values count"
        yield Finding(Disagreement.POINTS_UNKNOWN, subject, text, number, run.run_id, remedy)


def _compare_other_run(run: ListedRun, listing: StudyListing) -> Iterator[Finding]:
    """Compare a run that is not that of a trial which does not run."""
    subject = f"run {run.run_id} ({run.name})"
    if run.kind != tag_names.TRIAL_RUN:
        if run.is_open:
            text = "is RUNNING, but nothing searches or promotes the study"
            yield Finding(Disagreement.RUN_OPEN, subject, text, run_id=run.run_id)
        return
    number = run.tags.get(tag_names.TRIAL, "")
    if number in map(str, listing.open_trials) or run.status in ("KILLED", "FAILED"):
        return
    known = number in (str(trial.number) for trial in listing.trials)
    text = f"is {run.status}, but trial {number} " + ("has another run" if known else "does not exist")
    yield Finding(Disagreement.RUN_WITHOUT_TRIAL, subject, text, run_id=run.run_id)


def _has_ended(trial: TrialRecord) -> str:
    return {
        TrialState.COMPLETED: "has completed",
        TrialState.PRUNED: "was pruned",
        TrialState.FAILED: "has failed",
        TrialState.INTERRUPTED: "was interrupted",
        TrialState.PAUSED: "is paused",
        TrialState.REFUSED: "was refused",
    }[trial.state]


def _epochs(epochs: Sequence[int]) -> str:
    return f"epoch {epochs[0]}" if len(epochs) == 1 else f"{len(epochs)} epochs, from epoch {epochs[0]} on"
