"""The trials of a study from which a promotion takes its finalists."""

from __future__ import annotations

from collections.abc import Sequence

from fmnist_search.errors import UserError
from fmnist_search.results.study import TrialRecord, rank_trials
from fmnist_search.results.training import TrialState


def promotable_trials(
    trials: Sequence[TrialRecord], study: str, trial: int | None = None, max_parameters: int | None = None
) -> list[TrialRecord]:
    """Return the completed trials, best first: all, or only this trial, or those with so few parameters.

    Raises:
        UserError: if there is none.
    """
    if trial is not None and max_parameters is not None:
        raise UserError(f"--max-parameters {max_parameters}: --trial {trial} names the trial; leave out one of the two")
    ranked = rank_trials(trials)
    if not ranked:
        raise UserError(f"study {study!r}: has no completed trial to promote; continue the search first", exit_code=3)
    if trial is not None:
        return [_find_trial(trials, study, trial)]
    if max_parameters is None:
        return ranked
    small = [record for record in ranked if 0 < record.parameters <= max_parameters]
    if not small:
        counts = [record.parameters for record in ranked if record.parameters]
        least = f"the smallest has {min(counts):,}" if counts else "their numbers are not stored; give --trial"
        raise UserError(
            f"--max-parameters {max_parameters}: no completed trial of study {study!r} has so few parameters; {least}"
        )
    return small


def _find_trial(trials: Sequence[TrialRecord], study: str, number: int) -> TrialRecord:
    by_number = {record.number: record for record in trials}
    found = by_number.get(number)
    if found is not None and found.duplicate_of is not None:
        found = by_number.get(found.duplicate_of)
    if found is None:
        raise UserError(
            f"--trial {number}: study {study!r} has no such trial that ended; give a number from 0 to {max(by_number)}"
        )
    if found.state is not TrialState.COMPLETED:
        raise UserError(
            f"--trial {number}: has {found.state.value} in study {study!r}; give a completed one, as `fmnist-search "
            "leaderboard` lists them"
        )
    return found
