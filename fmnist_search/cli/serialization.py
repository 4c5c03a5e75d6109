"""What `--json` prints of each value: the keys are written here, so that a renamed field changes no output."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from fmnist_search.results.statistics import class_scores, mean_and_std
from fmnist_search.results.study import StopReason
from fmnist_search.results.training import TrialState

if TYPE_CHECKING:
    from fmnist_search.recipe.execution import Execution
    from fmnist_search.recipe.groups import Data
    from fmnist_search.results.champion import LearningRateResult
    from fmnist_search.results.study import StudySummary, TrialRecord
    from fmnist_search.results.training import Accuracy, EpochReport, Overhead, TestResult, TrialResult
    from fmnist_search.search.study_list import StudyEntry
    from fmnist_search.tracking.relocation import Relocation
    from fmnist_search.tracking.stored_runs import TrainedRun
    from fmnist_search.workflows.across_studies import ComparedStudy, EqualCompute, RankedTrial, StudyComparison
    from fmnist_search.workflows.agreement import Finding
    from fmnist_search.workflows.doctor import CheckResult
    from fmnist_search.workflows.repairing import Agreement
    from fmnist_search.workflows.reproduce import Reproduction
from fmnist_search.cli.model_serialization import Json, accuracy_to_dict, champion_to_dict

STOP_REASONS = {
    StopReason.TARGET: ("target", "its target accuracy is reached"),
    StopReason.TRIALS: ("trials", "its budget of trials is spent"),
    StopReason.EPOCHS: ("epochs", "its budget of epochs is spent"),
    StopReason.MINUTES: ("minutes", "its budget of minutes is spent"),
    StopReason.PATIENCE: ("patience", "its patience is at an end: no better trial in a while"),
    StopReason.FAILURES: ("failures", "too many trials failed"),
    StopReason.LOSSES: ("losses", "too many workers were lost with their machines"),
    StopReason.EXHAUSTED: ("exhausted", "its space is exhausted"),
    StopReason.REFUSED: (
        "refused",
        "its budget refused too many networks in a row: raise its limits, or search smaller networks",
    ),
    StopReason.INTERRUPTED: ("interrupted", "it was interrupted"),
    StopReason.OPEN: ("open", "its budget is not spent"),
}
"""What `status` prints of why a search stopped, and what `search` prints."""


# ------------------------------------------------------------------------------------------- studies


def trial_to_dict(trial: TrialRecord) -> Json:
    """Return a trial of a study; `cost` is there if the study minimizes one."""
    cost = {"cost": {"metric": trial.cost.metric, "value": trial.cost.value}} if trial.cost else {}
    return {
        "number": trial.number,
        "state": trial.state.value,
        "value": trial.value,
        "epochs": trial.epochs,
        "recipe": trial.recipe.to_flat_dict(),
        "seconds": trial.seconds,
        "reason": trial.reason,
        "duplicate_of": trial.duplicate_of,
        "run_id": trial.run_id,
        "curve": trial.curve,
        "overhead": overhead_to_dict(trial.overhead),
        "comes_again": trial.will_retry,
        "parameters": trial.parameters,
        "mult_adds": trial.mult_adds or None,
        "seconds_per_epoch": trial.seconds_per_epoch or None,
        "began_at": trial.started_at,
        "ended_at": trial.ended_at,
        **cost,
        **({"prediction": dict(vars(trial.prediction))} if trial.prediction else {}),
    }


def leader_to_dict(trial: TrialRecord, front: Collection[TrialRecord]) -> Json:
    """Return a trial of a leaderboard; if its study minimizes a cost, `pareto_front` says whether it is on it."""
    return {**trial_to_dict(trial), **({"pareto_front": trial in front} if front else {})}


def overhead_to_dict(overhead: Overhead) -> Json:
    """Return the seconds that a trial took beside its training."""
    return {
        "seconds": overhead.seconds,
        "build": overhead.build,
        "capture": overhead.capture,
        "sampling": overhead.sampling,
        "tracking": overhead.tracking,
    }


def search_to_dict(summary: StudySummary) -> Json:
    """Return a study with all its trials, as `search` prints it."""
    return {
        "name": summary.name,
        "question": summary.question,
        "trials": [trial_to_dict(trial) for trial in summary.trials],
        "ended_by": STOP_REASONS[summary.stop_reason][1],
        "new_trials": summary.new_trials,
        "seconds": summary.seconds,
        "run_id": summary.run_id,
        **_selected_to_dict(summary),
        "edges": summary.boundary_warnings,
        "overhead": overhead_to_dict(summary.overhead) if summary.overhead else None,
        "searched_seconds": summary.searched_seconds,
    }


def status_to_dict(summary: StudySummary) -> Json:
    """Return a study with the number of its trials in each state, as `status` prints it."""
    return {
        **{state.value: summary.count(state) for state in TrialState},
        "running": len(summary.running),
        "study": summary.name,
        "question": summary.question,
        "ended_by": STOP_REASONS[summary.stop_reason][0],
        "best": trial_to_dict(summary.best) if summary.best else None,
        **_selected_to_dict(summary),
        "run_id": summary.run_id,
        "edges": summary.boundary_warnings,
        "overhead": overhead_to_dict(summary.overhead) if summary.overhead else None,
        **({"pareto_front": [trial.number for trial in summary.front]} if summary.front else {}),
    }


def _selected_to_dict(summary: StudySummary) -> Json:
    """Return the model that a study has confirmed and registered, and the same as `champion` if it became that."""
    selected = champion_to_dict(summary.champion) if summary.champion else None
    became_champion = summary.champion is not None and summary.champion.is_champion
    return {"champion": selected if became_champion else None, "selected": selected}


def ranked_trial_to_dict(ranked: RankedTrial) -> Json:
    """Return a trial of a leaderboard of all studies, with its study and the images that it was trained on."""
    return {
        "study": ranked.study.summary.name,
        "data": data_to_dict(ranked.study.config.data),
        **trial_to_dict(ranked.trial),
    }


def study_comparison_to_dict(comparison: StudyComparison) -> Json:
    """Return a comparison of studies; `better` is None if no study is, or if their values cannot be compared."""
    return {
        "studies": [_compared_study_to_dict(study) for study in comparison.studies],
        "differing": list(comparison.differing),
        "comparable": not comparison.incomparable,
        "incomparable_because": list(comparison.incomparable),
        "same_epochs": _equal_compute_to_dict(comparison.same_epochs),
        "same_seconds": _equal_compute_to_dict(comparison.same_seconds),
        "chance_difference": comparison.chance,
    }


def _compared_study_to_dict(study: ComparedStudy) -> Json:
    summary, progress = study.summary, study.progress
    return {
        "study": summary.name,
        "question": summary.question,
        **{state.value: summary.count(state) for state in TrialState},
        "ended_by": STOP_REASONS[summary.stop_reason][0],
        "epochs": progress.epochs,
        "seconds": progress.seconds,
        "searched_seconds": summary.searched_seconds,
        "best": trial_to_dict(summary.best) if summary.best else None,
        "progress": [{"epochs": p.epochs, "seconds": p.seconds, "best": p.best} for p in progress.points],
        "settings": study.settings,
    }


def _equal_compute_to_dict(equal: EqualCompute) -> Json:
    return {"amount": equal.amount, "values": list(equal.values), "better": equal.better, "lead": equal.lead}


def data_to_dict(data: Data) -> Json:
    """Return which images a study trains on and validates with; 0 training images are all that validation leaves."""
    return {
        "dataset": data.dataset,
        "train_images": data.train_images,
        "validation": data.validation,
        "seed": data.seed,
    }


def listed_study_to_dict(
    entry: StudyEntry | None, name: str, question: str, file: str | None = None, builds_on: str = ""
) -> Json:
    """Return a row of `studies list`: a study file, a stored study, or both."""
    return {
        "study": name,
        "builds_on": builds_on or None,
        "trials": entry.trials if entry else None,
        "best": entry.best if entry else None,
        "file": file,
        "question": question,
    }


# ----------------------------------------------------------------------------------------- trainings


def training_to_dict(result: TrialResult, run_id: str | None) -> Json:
    """Return a training with its epochs."""
    return {
        "run_id": run_id,
        "state": result.state.value,
        "val_accuracy": result.value,
        "best_val_accuracy": result.best_val_accuracy,
        "best_epoch": result.best_epoch,
        "epochs": [epoch_to_dict(report) for report in result.epochs],
        "parameters": result.parameters,
        **({"test": _test_to_dict(result.test)} if result.test else {}),
        **({"registered": result.registered} if result.registered else {}),
    }


def _test_to_dict(test: TestResult) -> Json:
    scores = [
        {"class": name, "precision": score.precision, "recall": score.recall, "f1": score.f1, "support": score.support}
        for name, score in zip(test.classes, class_scores(test.confusion), strict=True)
    ]
    return {**accuracy_to_dict(test.accuracy), "classes": scores, "confusion": test.confusion}


def seed_tests_to_dict(tests: Sequence[Accuracy]) -> Json:
    """Return mean and standard deviation of accuracy and loss on the test images over seeds."""
    mean, deviation = mean_and_std([test.value for test in tests])
    loss, loss_deviation = mean_and_std([test.loss or 0.0 for test in tests])
    return {
        "test": {"mean": mean, "deviation": deviation, "loss_mean": loss, "loss_deviation": loss_deviation},
    }


def epoch_to_dict(report: EpochReport) -> Json:
    """Return the metrics of an epoch."""
    return {
        "epoch": report.epoch,
        "train_loss": report.train_loss,
        "train_accuracy": report.train_accuracy,
        "val_loss": report.val_loss,
        "val_accuracy": report.val_accuracy,
        "learning_rate": report.learning_rate,
        "seconds": report.seconds,
    }


def learning_rate_to_dict(rate: LearningRateResult) -> Json:
    """Return the trainings of a network at one learning rate."""
    return {
        "network": rate.network,
        "factor": rate.factor,
        "learning_rate": rate.learning_rate,
        "val_accuracies": rate.accuracies,
        "states": [result.state.value for result in rate.results],
        "reasons": [result.reason for result in rate.results],
    }


def run_to_dict(run: TrainedRun) -> Json:
    """Return a stored run with its recipe."""
    return {
        "run_id": run.run_id,
        "name": run.name,
        "kind": run.kind,
        "state": run.state,
        "recipe": run.recipe.to_flat_dict(),
        "accuracy": run.accuracy,
        "best": run.best,
        "epochs": run.epochs,
        "seconds": run.seconds,
        "parameters": run.parameters,
        "experiment_id": run.experiment_id,
        "parent": run.parent,
        "study": run.study,
    }


def reproduction_to_dict(reproduction: Reproduction) -> Json:
    """Return the epochs of a run and of its repetition, and what differs between their environments."""
    epochs = [
        {
            "epoch": pair.epoch,
            "same": pair.is_identical,
            **{name: {"was": was, "is": now} for name, (was, now) in pair.metrics.items()},
        }
        for pair in reproduction.epochs
    ]
    return {
        "run": reproduction.original.run_id,
        "same": reproduction.is_identical,
        "epochs": epochs,
        "reason": reproduction.reason,
        "execution": execution_to_dict(reproduction.execution),
        "environment": {name: {"was": was, "is": now} for name, (was, now) in reproduction.environment_changes.items()},
        "run_id": reproduction.run_id,
    }


def execution_to_dict(execution: Execution) -> Json:
    """Return how a recipe is run."""
    return {
        "device": execution.device,
        "threads": execution.threads,
        "engine": execution.engine,
        "memory_format": execution.memory_format,
        "allocator": execution.allocator,
        "deterministic": execution.deterministic,
    }


# --------------------------------------------------------------------------------------- environment


def check_to_dict(check: CheckResult) -> Json:
    """Return a finding of `doctor`."""
    return {"subject": check.subject, "ok": check.ok, "finding": check.finding}


def agreement_to_dict(agreement: Agreement) -> Json:
    """Return what `doctor --study` found of a study: what remains, and what was mended with what was done."""
    return {
        "study": agreement.study,
        "remaining": [_finding_to_dict(finding) for finding in agreement.remaining],
        "repaired": [{**_finding_to_dict(finding), "action": action} for finding, action in agreement.repaired],
    }


def _finding_to_dict(finding: Finding) -> Json:
    return {
        "kind": finding.kind.value,
        "subject": finding.subject,
        "finding": finding.text,
        "trial": finding.trial,
        "run_id": finding.run_id,
        "repairable": finding.is_repairable,
        "remedy": finding.remedy,
    }


def relocation_to_dict(relocation: Relocation) -> Json:
    """Return what `relocate` rewrote."""
    return {
        "project": str(relocation.project),
        "before": [str(folder) for folder in relocation.old_projects],
        "changed": dict(relocation.changed),
        "events": relocation.events,
        "kept": [{"folder": str(folder), "exists": folder.exists()} for folder in relocation.kept],
        "uncopied": [str(folder) for folder in relocation.uncopied],
        "backup": None if relocation.backup is None else str(relocation.backup),
    }
