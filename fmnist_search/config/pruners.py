"""The pruners that a study file can name, each with its settings; `search.pruners` creates them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fmnist_search.config.sections import MAX_TRIALS, Section, expand_name
from fmnist_search.recipe.recipe import MAX_EPOCHS


class RungPruner(Section):
    """A pruner that compares trials at rungs."""

    min_epochs: int | None = Field(
        None,
        ge=1,
        le=MAX_EPOCHS,
        description="epochs before the first rung; by default 2, or 1 if a trial has at most 3",
    )
    reduction_factor: int = Field(
        3, ge=2, le=1_000, description="1/reduction_factor of the trials continue after a rung"
    )
    startup_trials: int = Field(1, ge=1, le=MAX_TRIALS, description="trials that reach the first rung before it prunes")

    def first_rung(self, epochs: int) -> int:
        """Return the epoch after which a trial of `epochs` epochs can first be pruned."""
        return self.min_epochs or (2 if epochs > 3 else 1)


class QuantilePruner(Section):
    """A pruner that compares a trial with all others at the same epoch."""

    startup_trials: int = Field(5, ge=0, le=MAX_TRIALS, description="completed trials before it prunes")
    warmup_epochs: int = Field(
        0, ge=0, le=MAX_EPOCHS, description="epochs at the start of a trial in which it is never pruned"
    )
    min_trials: int = Field(
        1, ge=1, le=MAX_TRIALS, description="trials that reach an epoch before it prunes after that epoch"
    )

    def first_rung(self, epochs: int) -> int:
        """Return the epoch after which a trial can first be pruned."""
        return self.warmup_epochs + 1


class Halving(RungPruner):
    """Asynchronous successive halving: after each rung the best 1/reduction_factor of the trials continue."""

    name: Literal["halving"] = "halving"


class Hyperband(RungPruner):
    """Successive halving in brackets whose first rungs are at different epochs."""

    name: Literal["hyperband"] = "hyperband"


class Median(QuantilePruner):
    """Ends a trial whose best value so far is below the median of the others at the same epoch."""

    name: Literal["median"] = "median"


class Percentile(QuantilePruner):
    """Ends a trial whose best value so far is not among the best `percentile` of the others at the same epoch."""

    name: Literal["percentile"] = "percentile"
    percentile: float = Field(25.0, gt=0, le=100, description="share of the trials that continue, in percent")


class Patience(Section):
    """Ends a trial that has not improved for some epochs, whatever the other trials do."""

    name: Literal["patience"] = "patience"
    epochs: int = Field(2, ge=0, le=MAX_EPOCHS, description="epochs without improvement that a trial may have")
    min_delta: float = Field(0.0, ge=0, le=1, description="largest gain in accuracy that does not count as improvement")

    def first_rung(self, epochs: int) -> int:
        """Return the epoch after which a trial can first be pruned."""
        return self.epochs + 2


class Extrapolation(Section):
    """Ends a trial that will hardly beat the best completed one, by a model that extrapolates learning curves."""

    name: Literal["extrapolation"] = "extrapolation"
    min_probability: float = Field(
        0.05, gt=0, le=1, description="probability of beating the best trial below which a trial ends"
    )
    startup_trials: int = Field(1, ge=1, le=MAX_TRIALS, description="completed trials before it prunes")

    def first_rung(self, epochs: int) -> int:
        """Return the epoch after which a trial can first be pruned."""
        return 1


class OneEpoch(Section):
    """Trains all candidates for one epoch, then the best few of them in full (arXiv 2307.15422).

    The last `survivors` trials of the budget are trained in full; all earlier ones are candidates.
    """

    name: Literal["one-epoch"] = "one-epoch"
    survivors: int = Field(3, ge=1, le=MAX_TRIALS, description="number of candidates that are trained in full")
    epochs: int = Field(1, ge=1, le=MAX_EPOCHS, description="epochs of a candidate")

    def first_rung(self, epochs: int) -> int:
        """Return the epoch after which a candidate ends."""
        return self.epochs


class NoPruner(Section):
    """Every trial trains to its last epoch."""

    name: Literal["none"] = "none"

    def first_rung(self, epochs: int) -> int:
        """Return 0: no trial is pruned."""
        return 0


FALLBACK_PRUNER = Halving()
"""The pruner of a study that names only a sampler or cannot have freeze-thaw, and of a `[pruner]` without a name."""

Pruner = Annotated[
    Halving | Hyperband | Median | Percentile | Patience | Extrapolation | OneEpoch | NoPruner,
    Field(discriminator="name"),
    expand_name(FALLBACK_PRUNER.name),
]
