"""Several stored studies at once: their states, their best trials, and which search was better for its compute.

As `lookup`, imports neither torch nor MLflow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_search.config.comparability import data_settings, search_settings
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe.formatting import differing_names
from fmnist_search.results.compute import StudyProgress, chance_difference, study_progress
from fmnist_search.results.study import StudySummary, TrialRecord, cost_rank, rank_trials
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_list import list_studies, load_studies
from fmnist_search.search.study_store import StudyStore
from fmnist_search.workflows.lookup import is_trial_number, load_study, summarize_current
from fmnist_search.workspace import Workspace


@dataclass(frozen=True)
class StoredStudy:
    """A stored study: its config, its summary, and how its trials are run if that was decided."""

    config: StudyConfig
    summary: StudySummary
    runtime: StudyRuntime | None


@dataclass(frozen=True)
class RankedTrial:
    """A completed trial and its study."""

    study: StoredStudy
    trial: TrialRecord


@dataclass(frozen=True)
class EqualCompute:
    """The best value of each study after an equal amount of compute, that of the study which has least.

    `better` is the name of the study with the highest value; None if there is none, or if the values cannot be
    compared. `lead` is the distance to the next value, None if no other study had completed a trial.
    """

    amount: float
    values: tuple[float | None, ...]
    better: str | None
    lead: float | None


@dataclass(frozen=True)
class ComparedStudy:
    """A study of a comparison: its settings by key, as texts, and its best value against compute."""

    summary: StudySummary
    settings: dict[str, str]
    progress: StudyProgress


@dataclass(frozen=True)
class StudyComparison:
    """Several studies, the settings in which they differ, and their best values after equal compute.

    `incomparable` holds the settings that make their values incomparable: other images or another split.
    `chance` is the difference of two accuracies that chance explains, in 0..1; None if no trial has completed.
    """

    studies: tuple[ComparedStudy, ...]
    differing: tuple[str, ...]
    incomparable: tuple[str, ...]
    same_epochs: EqualCompute
    same_seconds: EqualCompute
    chance: float | None


def all_studies(*, workspace: Workspace | None = None) -> list[StoredStudy]:
    """Return all stored studies in the order in which they were created.

    Raises:
        UserError: if there is none.
    """
    workspace = workspace or Workspace.resolve()
    return [_read(workspace, study_store) for study_store in load_studies(workspace.storage_url)]


def _read(workspace: Workspace, study_store: StudyStore) -> StoredStudy:
    return StoredStudy(study_store.config, summarize_current(workspace, study_store), study_store.runtime)


def leaderboards(studies: Sequence[StoredStudy], top: int, metric: str | None = None) -> list[list[RankedTrial]]:
    """Return a leaderboard for each group of studies with the same images: its best completed trials, at most `top`.

    With `metric`, one of `results.objectives.COST_LABELS`, these are the cheapest by this cost. Values from other
    images or another split cannot be ranked together.
    """
    groups: dict[tuple[str, ...], list[StoredStudy]] = {}
    for study in studies:
        groups.setdefault(tuple(data_settings(study.config).values()), []).append(study)
    return [board[:top] for group in groups.values() if (board := _rank(group, metric))]


def _rank(studies: Sequence[StoredStudy], metric: str | None) -> list[RankedTrial]:
    """Return the completed trials of studies, best first; of equal ones that of the older study first."""
    ranked = [RankedTrial(study, trial) for study in studies for trial in rank_trials(study.summary.trials)]
    if metric:
        return sorted(ranked, key=lambda each: cost_rank(each.trial, metric))
    return sorted(ranked, key=lambda each: -(each.trial.value or 0.0))


def are_studies(words: Sequence[str], *, workspace: Workspace) -> bool:
    """Return whether the words name stored studies, rather than runs by their ids or trials by their numbers.

    Raises:
        UserError: if some words name studies and others do not, or if a word is neither.
    """
    if all(map(_is_run, words)):
        return False
    names = [entry.name for entry in list_studies(workspace.storage_url)]
    studies = [word for word in words if word in names]
    others = [word for word in words if word not in names]
    if not others:
        return True
    if unknown := [word for word in others if not _is_run(word)]:
        remedy = f"; {did_you_mean(unknown[0], names)}" if names else ""
        raise UserError(f"compare {unknown[0]!r}: is no stored study, no id of a run and no number of a trial{remedy}")
    raise UserError(
        f"compare {others[0]!r}: is a run or a trial, and {studies[0]!r} is a study; give only runs or only studies"
    )


def _is_run(word: str) -> bool:
    return is_trial_number(word) or re.fullmatch("[0-9a-f]{32}", word) is not None


def compare_studies(names: Sequence[str], *, workspace: Workspace | None = None) -> StudyComparison:
    """Return how stored studies differ, and which found the best value for the same compute.

    Raises:
        UserError: if there are fewer than two different names, or no study of a name.
    """
    workspace = workspace or Workspace.resolve()
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise UserError(f"compare {names[0]!r}: is one study; give the names of two or more")
    found = [_read(workspace, load_study(workspace, name)) for name in names]
    studies = tuple(map(_to_compared, found))
    differing = tuple(differing_names([study.settings for study in studies]))
    incomparable = tuple(name for name in differing if name.startswith("data."))
    best = max((study.summary.best.value or 0.0 for study in studies if study.summary.best), default=None)
    progress = [study.progress for study in studies]
    epochs, seconds = min(each.epochs for each in progress), min(each.seconds for each in progress)
    by_epochs = [each.best_within(epochs=epochs) for each in progress]
    by_seconds = [each.best_within(seconds=seconds) for each in progress]
    return StudyComparison(
        studies,
        differing,
        incomparable,
        _equal_compute(names, epochs, by_epochs, can_compare=not incomparable),
        _equal_compute(names, seconds, by_seconds, can_compare=not incomparable),
        None if best is None else chance_difference(best, min(study.config.data.validation for study in found)),
    )


def _to_compared(study: StoredStudy) -> ComparedStudy:
    settings = search_settings(study.config)
    if study.runtime:  # what was chosen for "auto"
        execution = study.runtime.execution
        settings |= {
            "execution.device": execution.device,
            "execution.threads": str(execution.threads),
            "execution.precision": study.runtime.precision,
        }
    return ComparedStudy(study.summary, settings, study_progress(study.config.name, study.summary.trials))


def _equal_compute(
    names: Sequence[str], amount: float, values: Sequence[float | None], *, can_compare: bool
) -> EqualCompute:
    known = sorted((value for value in values if value is not None), reverse=True)
    if not can_compare or not known or known[:1] == known[1:2]:
        return EqualCompute(amount, tuple(values), None, None)
    lead = known[0] - known[1] if len(known) > 1 else None
    return EqualCompute(amount, tuple(values), names[values.index(known[0])], lead)
