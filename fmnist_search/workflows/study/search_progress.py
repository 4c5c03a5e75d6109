"""The trials of a search that have ended, with counts that are kept up to date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.workflows.study.stopping import SpentBudget


class SearchProgress:
    """The trials that have ended, in the order of their ends, and those that are paused or wait to go on.

    `spent` is what they count against the budget, `counts` the number of trained trials by state, `best_accuracy` the
    highest of any epoch of those that have completed or were pruned, and `paused` the number of paused ones. `answers`
    has a trial that answers later equal ones by the key of its recipe.
    """

    def __init__(self, records: Iterable[TrialRecord]):
        self.spent = SpentBudget()
        self.counts: Counter[TrialState] = Counter()
        self.best_accuracy: float | None = None
        self._records: dict[int, TrialRecord] = {}
        self._answers: dict[str, TrialRecord] = {}
        self._paused: set[int] = set()
        for record in records:
            self.add(record)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> list[TrialRecord]:
        """The records of these trials."""
        return list(self._records.values())

    @property
    def paused(self) -> int:
        """The number of paused trials."""
        return len(self._paused)

    def is_paused(self, number: int) -> bool:
        """Return whether a trial is paused."""
        return number in self._paused

    @property
    def answers(self) -> Mapping[str, TrialRecord]:
        """The trials whose results are the results of later trials with equal recipes."""
        return self._answers

    def add(self, record: TrialRecord) -> None:
        """Add a trial that has ended, is paused, or waits to go on."""
        former = self._records.pop(record.number, None)
        self._records[record.number] = record
        if former is not None and former.is_final:
            return
        self.spent.add(record)
        if record.state is TrialState.PAUSED:
            self._paused.add(record.number)
        else:
            self._paused.discard(record.number)
        if record.duplicate_of is None:
            self._count(record)

    def _count(self, record: TrialRecord) -> None:
        self.counts[record.state] += 1
        if record.value is None:
            return
        if record.state in (TrialState.COMPLETED, TrialState.PRUNED):
            self.best_accuracy = max(self.best_accuracy or 0.0, record.value, *record.curve)
            self._answers[record.recipe.seed_independent_key()] = record

    def remove(self, number: int) -> None:
        """Remove a trial that goes on."""
        self._records.pop(number, None)
        self._paused.discard(number)
