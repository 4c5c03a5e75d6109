"""Networks that cost more than the budget of a study allows: they are refused before they are trained."""

from __future__ import annotations

from collections.abc import Iterable

from fmnist_search.config.samplers import Grid
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.families import Architecture
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import network_size
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import EpochReport, TrialResult, TrialState
from fmnist_search.search.asked_trial import AskedTrial
from fmnist_search.search.preview import recipes_of_space

MAX_REFUSALS = 500
"""After as many refusals in a row the search ends; a grid, which has an end, goes on."""

RANDOM_AFTER = 10
"""After as many refusals in a row every second recipe is random: not every sampler learns from refused ones."""

MIN_SIMILAR = 3
"""Trials whose speed tells that of another network: the first ones of a worker are slower."""

LOOKED_AT = 500
"""Random recipes of a space that are looked at before a budget that allows none of them is an error."""


class NetworkBudget:
    """What the trials of a study may cost, what similar ones have cost, and how many were refused in a row.

    `records` are the trials that have ended, by number.
    """

    def __init__(self, config: StudyConfig, records: Iterable[TrialRecord]):
        self._budget = config.budget
        self._is_grid = isinstance(config.sampler, Grid)
        self._measured: dict[int, TrialRecord] = {}
        self._in_a_row = 0
        for record in records:
            is_refused = record.state is TrialState.REFUSED
            self._in_a_row = (self._in_a_row + 1) % MAX_REFUSALS if is_refused else 0
            self.add(record)

    @property
    def is_spent(self) -> bool:
        """Whether too many networks were refused in a row."""
        return self._in_a_row >= MAX_REFUSALS and not self._is_grid

    @property
    def samples_at_random(self) -> bool:
        """Whether the next recipe is random."""
        return self._in_a_row >= RANDOM_AFTER and self._in_a_row % 2 == 1

    @property
    def has_limits(self) -> bool:
        """Whether the budget refuses networks."""
        return self._budget.max_mult_adds is not None or self._budget.max_seconds_per_epoch is not None

    def accepts(self, recipe: Recipe) -> bool:
        """Return whether the network of a recipe would be trained."""
        return self._reason(recipe) is None

    def add(self, record: TrialRecord) -> None:
        """Learn how long the epochs of a trial took."""
        if record.seconds_per_epoch and record.mult_adds and record.duplicate_of is None:
            self._measured[record.number] = record

    def judge(self, asked: AskedTrial) -> TrialResult | None:
        """Return the result of a trial whose network is refused; None if it is to be trained.

        A trial that has begun goes on. A network that cannot be built is not refused: its training tells why.
        """
        if asked.curve or asked.run_key or asked.is_survivor:
            return None
        reason = self._reason(asked.recipe)
        if reason is None:
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        size = network_size(asked.recipe.model, asked.recipe.data.num_classes)
        return TrialResult(
            TrialState.REFUSED, (), 0.0, parameters=size.parameters, mult_adds=size.mult_adds, reason=reason
        )

    def _reason(self, recipe: Recipe) -> str | None:
        if not self.has_limits:
            return None
        budget = self._budget
        try:
            mult_adds = network_size(recipe.model, recipe.data.num_classes).mult_adds
        except UserError:
            return None
        if budget.max_mult_adds is not None and mult_adds > budget.max_mult_adds:
            return f"{mult_adds:,} multiply-adds are more than budget.max_mult_adds = {budget.max_mult_adds:,}"
        limit, expected = budget.max_seconds_per_epoch, self._expected_seconds(recipe.model.family, mult_adds)
        if limit is not None and expected is not None and expected > limit:
            return f"about {expected:.2g} s an epoch are more than budget.max_seconds_per_epoch = {limit:g}"
        return None

    def _expected_seconds(self, family: str, mult_adds: int) -> float | None:
        """Return the seconds of an epoch at the speed of the fastest similar trial; None if there are too few."""
        similar = [
            record.seconds_per_epoch * mult_adds / record.mult_adds
            for record in self._measured.values()
            if record.recipe.model.family == family and mult_adds / 2 <= record.mult_adds <= mult_adds * 2
        ]
        return min(similar) if len(similar) >= MIN_SIMILAR else None


def slow_epoch(report: EpochReport, max_seconds: float | None) -> str | None:
    """Return why a trial ends after its first epoch; None if that was fast enough, or another epoch."""
    if max_seconds is None or report.epoch > 1 or report.seconds <= max_seconds:
        return None
    return f"its first epoch took {report.seconds:.2g} s, more than budget.max_seconds_per_epoch = {max_seconds:g}"


def check_space(config: StudyConfig) -> None:
    """Check that a network of the space has few enough multiply-adds.

    Raises:
        UserError: if none of those that are looked at has: the smallest values and random ones, or a whole grid.
    """
    limit = config.budget.max_mult_adds
    if limit is None:
        return
    sizes = []
    for recipe in recipes_of_space(config, LOOKED_AT):
        try:
            sizes.append(network_size(recipe.model, recipe.data.num_classes).mult_adds)
        except UserError:  # too large to be built: its training would tell why
            continue
        if sizes[-1] <= limit:
            return
    if sizes:
        raise UserError(
            f"budget.max_mult_adds: {limit:,} refuses all of {len(sizes):,} networks of the space; the smallest has "
            f"{min(sizes):,} multiply-adds; raise the limit, or search smaller networks"
        )


def check_start(config: StudyConfig, source: str, network: Architecture | None) -> None:
    """Check that the network of a start recipe has few enough multiply-adds, if the recipe determines it.

    Raises:
        UserError: if it has more, or cannot be built.
    """
    limit = config.budget.max_mult_adds
    if limit is None or network is None:
        return
    mult_adds = network_size(network, config.data.num_classes).mult_adds
    if mult_adds > limit:
        raise UserError(
            f"start.recipes: {source}: has {mult_adds:,} multiply-adds, more than budget.max_mult_adds = {limit:,}; "
            "leave it out, or raise the limit"
        )
