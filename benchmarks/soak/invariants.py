"""What must hold after a soak test, whatever was injected: each check returns what breaks it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from benchmarks.soak.stores import StoredRun
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.tracking import metric_names, tag_names

EPOCH_METRICS = (
    metric_names.TRAIN_LOSS,
    metric_names.TRAIN_ACCURACY,
    metric_names.VAL_LOSS,
    metric_names.VAL_ACCURACY,
    metric_names.EPOCH_SECONDS,
    metric_names.LEARNING_RATE,
)
"""The metrics of a training with a point for each epoch; all others have one point."""

ENDED_STATUS = {TrialState.COMPLETED: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAILED: "FAILED"}
OPTUNA_STATE = {
    TrialState.COMPLETED: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}
MAX_VIOLATIONS = 20
"""How many violations of an invariant the result lists."""


@dataclass(frozen=True)
class Invariant:
    """A statement that must be true, with whatever contradicts it."""

    statement: str
    violations: tuple[str, ...]

    @classmethod
    def check(cls, statement: str, violations: Iterator[str] | Sequence[str]) -> Invariant:
        """Return the statement with its violations."""
        return cls(statement, tuple(violations))

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts it."""
        return not self.violations


def check_study(
    trials: Sequence[FrozenTrial], records: Sequence[TrialRecord], runs: Sequence[StoredRun], budget: int
) -> list[Invariant]:
    """Return the invariants of a study, of which `runs` are all runs in MLflow and `records` the ended trials."""
    by_trial: dict[str, list[StoredRun]] = defaultdict(list)
    for run in runs:
        if run.tags.get(tag_names.KIND) == tag_names.TRIAL_RUN:
            by_trial[run.tags[tag_names.TRIAL]].append(run)
    return [
        Invariant.check(f"the budget of {budget} trials is spent exactly", _check_budget(trials, records, budget)),
        Invariant.check("no trial is left without an end in Optuna", _check_ended(trials)),
        Invariant.check(
            "no run is left without an end in MLflow",
            [str(run) for run in runs if run.status not in ENDED_STATUS.values()],
        ),
        Invariant.check("each trial has one run, of its state", _check_one_run(records, by_trial)),
        Invariant.check("each run has the value of its trial", _check_values(records, by_trial)),
        Invariant.check("each run has each point once", _check_points(records, by_trial)),
        Invariant.check("no run is without a trial", _check_owners(records, by_trial)),
        Invariant.check("the best trial has the highest value", _check_best(trials, records, runs)),
    ]


def _check_budget(trials: Sequence[FrozenTrial], records: Sequence[TrialRecord], budget: int) -> Iterator[str]:
    counted = sum(record.is_final for record in records)
    if counted != budget:
        yield f"{counted} trials count"
    if len(trials) != budget:
        states = Counter(trial.state.name for trial in trials)
        yield f"{len(trials)} trials are in Optuna: {dict(states)}"
    if repeated := [record.number for record in records if not record.is_final]:
        yield f"trials that do not count: {repeated}"


def _check_ended(trials: Sequence[FrozenTrial]) -> Iterator[str]:
    for trial in trials:
        if not trial.state.is_finished():
            yield f"trial {trial.number} is {trial.state.name}, outcome {trial.user_attrs.get('outcome')}"


def _check_one_run(records: Sequence[TrialRecord], by_trial: dict[str, list[StoredRun]]) -> Iterator[str]:
    for record in records:
        own = by_trial[str(record.number)]
        expected = [] if record.duplicate_of is not None else [ENDED_STATUS.get(record.state)]
        if [run.status for run in own] != expected:
            yield f"trial {record.number} ({record.state.value}): {', '.join(map(str, own)) or 'no run'}"
        elif own and own[0].tags.get(tag_names.STATE) != record.state.value:
            yield f"trial {record.number} ({record.state.value}): {own[0]}"


def _check_values(records: Sequence[TrialRecord], by_trial: dict[str, list[StoredRun]]) -> Iterator[str]:
    for record, run in _pairs(records, by_trial):
        curve = tuple(value for _, value in run.points.get(metric_names.VAL_ACCURACY, []))
        if curve != record.curve:
            yield f"trial {record.number} has {record.curve}, and {run} {curve}"
        if record.state is TrialState.COMPLETED and (not record.curve or record.value != record.curve[-1]):
            yield f"trial {record.number} has the value {record.value}, and its curve is {record.curve}"


def _check_points(records: Sequence[TrialRecord], by_trial: dict[str, list[StoredRun]]) -> Iterator[str]:
    for record, run in _pairs(records, by_trial):
        epochs = list(range(1, record.epochs + 1))
        missing = set(EPOCH_METRICS) - run.points.keys() if epochs else ()
        wrong = {
            key: [step for step, _ in points]
            for key, points in run.points.items()
            if ([step for step, _ in points] != epochs if key in EPOCH_METRICS else len(points) != 1)
        }
        if wrong or missing:
            yield f"trial {record.number} of {record.epochs} epochs, {run}: {wrong} missing {sorted(missing)}"
        if record.state is not TrialState.FAILED and len(record.curve) != record.epochs:
            yield f"trial {record.number}: {record.epochs} epochs, and {len(record.curve)} values in Optuna"


def _check_owners(records: Sequence[TrialRecord], by_trial: dict[str, list[StoredRun]]) -> Iterator[str]:
    numbers = {str(record.number) for record in records}
    for number, runs in by_trial.items():
        if number not in numbers:
            yield from (f"trial {number}: {run}" for run in runs)


def _check_best(
    trials: Sequence[FrozenTrial], records: Sequence[TrialRecord], runs: Sequence[StoredRun]
) -> Iterator[str]:
    highest = max((trial.value or 0.0 for trial in trials if trial.state is OptunaState.COMPLETE), default=0.0)
    best = max((record.value or 0.0 for record in records if record.state is TrialState.COMPLETED), default=0.0)
    if best != highest:
        yield f"the best is {best}, the highest value in Optuna {highest}"
    for record in records:
        if trials[record.number].state is not OPTUNA_STATE.get(record.state):
            yield f"trial {record.number} is {record.state.value}, in Optuna {trials[record.number].state.name}"
    ended = [record for record in records if record.state in (TrialState.COMPLETED, TrialState.PRUNED)]
    highest_of_epochs = max((max(record.curve, default=0.0) for record in ended), default=0.0)
    for run in runs:
        if run.tags.get(tag_names.KIND) == tag_names.STUDY_RUN:
            shown = [value for _, value in run.points.get(metric_names.BEST_VAL_ACCURACY, [])]
            if not shown or shown[-1] != highest_of_epochs:
                yield f"{run} shows {shown[-1:]}, the highest value of an epoch in Optuna is {highest_of_epochs}"


def _pairs(
    records: Sequence[TrialRecord], by_trial: dict[str, list[StoredRun]]
) -> Iterator[tuple[TrialRecord, StoredRun]]:
    """Yield each trial that was trained and has one run, with the run."""
    for record in records:
        own = by_trial[str(record.number)]
        if len(own) == 1:
            yield record, own[0]
