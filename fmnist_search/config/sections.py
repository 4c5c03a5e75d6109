"""The tables of a study file, each with its keys, limits and meanings: samplers, pruners, budget, finalists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, field_validator, model_validator

from fmnist_search.config.space import Choice, Domain
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import DEFAULT_DATASET

NAME_PATTERN = r"^\w[\w .+@-]{0,199}$"
"""Names become folders and stand in addresses."""


class Section(BaseModel):
    """A table of a study file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class SamplerSection(Section):
    """The settings of a sampler."""

    def joint_groups(self, groups: Sequence[Mapping[str, Domain]]) -> list[Mapping[str, Domain]]:
        """Return the groups of hyperparameters that it samples jointly; all others it samples independently.

        `groups` are those of a space, as in `conditional_space.hyperparameter_groups`; the first is unconditional.
        """
        return []


class Tpe(SamplerSection):
    """Tree-structured Parzen estimator, multivariate and grouped: learns from the trials so far."""

    name: Literal["tpe"] = "tpe"
    startup_trials: int = Field(5, ge=1, description="trials sampled at random before it learns")
    candidates: int = Field(24, ge=1, description="random candidates for each trial, of which the best is tried")

    def joint_groups(self, groups: Sequence[Mapping[str, Domain]]) -> list[Mapping[str, Domain]]:
        """Return every group."""
        return list(groups)


class Random(SamplerSection):
    """Every trial sampled independently."""

    name: Literal["random"] = "random"


class Gp(SamplerSection):
    """Gaussian process, learning from completed trials; conditional hyperparameters are sampled at random."""

    name: Literal["gp"] = "gp"
    startup_trials: int = Field(10, ge=1, description="completed trials sampled at random before it learns")

    def joint_groups(self, groups: Sequence[Mapping[str, Domain]]) -> list[Mapping[str, Domain]]:
        """Return the unconditional group."""
        return [groups[0]]


class Cmaes(SamplerSection):
    """CMA-ES over unconditional ranges, learning from completed trials; all else is sampled at random."""

    name: Literal["cmaes"] = "cmaes"
    startup_trials: int = Field(1, ge=0, description="completed trials sampled at random before it begins")
    population: int | None = Field(None, ge=2, description="recipes a generation; by default from the number of ranges")

    def joint_groups(self, groups: Sequence[Mapping[str, Domain]]) -> list[Mapping[str, Domain]]:
        """Return the ranges of the unconditional group."""
        return [{name: domain for name, domain in groups[0].items() if not isinstance(domain, Choice)}]


class Qmc(SamplerSection):
    """Quasi-random: a scrambled low-discrepancy sequence over the whole space, which learns nothing."""

    name: Literal["qmc"] = "qmc"
    sequence: Literal["sobol", "halton"] = "sobol"

    def joint_groups(self, groups: Sequence[Mapping[str, Domain]]) -> list[Mapping[str, Domain]]:
        """Return one group of all hyperparameters."""
        return [{name: domain for group in groups for name, domain in group.items()}]


class Grid(SamplerSection):
    """Every recipe of a space of lists and steps, once, in random order."""

    name: Literal["grid"] = "grid"


class RungPruner(Section):
    """A pruner that compares trials at rungs."""

    min_epochs: int | None = Field(
        None, ge=1, description="epochs before the first rung; by default 2, or 1 where a trial has 3 at most"
    )
    reduction_factor: int = Field(3, ge=2, description="one in so many goes on from a rung")
    startup_trials: int = Field(1, ge=1, description="results at the first rung before it prunes")

    def first_rung(self, epochs: int) -> int:
        """The epoch after which a trial of so many epochs can first be pruned."""
        return self.min_epochs or (2 if epochs > 3 else 1)


class QuantilePruner(Section):
    """A pruner that compares a trial with all others at the same epoch."""

    startup_trials: int = Field(5, ge=0, description="completed trials before it prunes")
    warmup_epochs: int = Field(0, ge=0, description="epochs in which it never prunes")
    min_trials: int = Field(1, ge=1, description="results at an epoch before it prunes there")

    def first_rung(self, epochs: int) -> int:
        """The epoch after which a trial can first be pruned."""
        return self.warmup_epochs + 1


class Halving(RungPruner):
    """Asynchronous successive halving: at each rung the best 1/reduction_factor go on."""

    name: Literal["halving"] = "halving"


class Hyperband(RungPruner):
    """Successive halving in brackets that begin to prune at different epochs."""

    name: Literal["hyperband"] = "hyperband"


class Median(QuantilePruner):
    """Ends a trial whose best value so far is below the median of the others at the same epoch."""

    name: Literal["median"] = "median"


class Percentile(QuantilePruner):
    """Ends a trial whose best value so far is not among the best `percentile` of the others at the same epoch."""

    name: Literal["percentile"] = "percentile"
    percentile: float = Field(25.0, gt=0, le=100, description="share of the trials that go on, in percent")


class Patience(Section):
    """Ends a trial that has not bettered itself for some epochs, whatever the others do."""

    name: Literal["patience"] = "patience"
    epochs: int = Field(2, ge=0, description="epochs without a better value that are forgiven")
    min_delta: float = Field(0.0, ge=0, description="gain in accuracy that counts as none")

    def first_rung(self, epochs: int) -> int:
        """The epoch after which a trial can first be pruned."""
        return self.epochs + 2


class OneEpoch(Section):
    """Trains all candidates a single epoch and the best few of them in full (arXiv 2307.15422).

    The last `survivors` trials of the budget are those best few; all before them are candidates.
    """

    name: Literal["one-epoch"] = "one-epoch"
    survivors: int = Field(3, ge=1, description="how many of the candidates are trained in full")
    epochs: int = Field(1, ge=1, description="epochs of a candidate")

    def first_rung(self, epochs: int) -> int:
        """The epoch after which a candidate ends."""
        return self.epochs


class NoPruner(Section):
    """Every trial trains to its last epoch."""

    name: Literal["none"] = "none"

    def first_rung(self, epochs: int) -> int:
        """There is none."""
        return 0


def _expand_bare_name(default: str) -> BeforeValidator:
    """A bare name stands for its table, and a table without a name for the default's."""

    def expand(value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default, **value} if isinstance(value, Mapping) else value

    return BeforeValidator(expand)


Sampler = Annotated[Tpe | Random | Gp | Cmaes | Qmc | Grid, Field(discriminator="name"), _expand_bare_name("tpe")]
Pruner = Annotated[
    Halving | Hyperband | Median | Percentile | Patience | OneEpoch | NoPruner,
    Field(discriminator="name"),
    _expand_bare_name("halving"),
]


class Budget(Section):
    """What a study may spend, in all, and what ends it earlier: running it again continues and does not add."""

    trials: int | None = Field(None, ge=1, description="trials in all, completed, pruned or failed")
    minutes: float | None = Field(None, gt=0, description="minutes of searching in all, finalists apart")
    total_epochs: int | None = Field(None, ge=1, description="epochs of all trials together")
    epochs: int = Field(9, ge=1, description="epochs of a trial that is not pruned")
    trial_minutes: float | None = Field(None, gt=0, description="minutes after which a trial is pruned")
    target: float | None = Field(None, gt=0, description="accuracy, as a share of 1, that is good enough")
    patience: int | None = Field(None, ge=1, description="trials in a row without a better one")
    failures: int = Field(10, ge=1, description="failed trials after which the study stops")

    @model_validator(mode="after")
    def _check_target(self) -> Budget:
        if self.target is not None and self.target > 1:
            remedy = f"; {self.target:g} % is {self.target / 100:g}" if self.target <= 100 else ""
            raise UserError(f"budget.target: {self.target:g} is no accuracy, which lies between 0 and 1{remedy}")
        return self

    @property
    def is_finite(self) -> bool:
        """Whether it is sure to be spent some day."""
        return any(limit is not None for limit in (self.trials, self.minutes, self.total_epochs, self.patience))


class Start(Section):
    """Recipes that are tried before the sampler is asked."""

    recipes: tuple[str | dict[str, Any], ...] = Field(
        (),
        description="recipe files, `preset:NAME`, `study:NAME` (its best trial), `champion`, or tables of values of "
        "which the rest is drawn",
    )
    outside: Literal["refuse", "try"] = Field(
        "refuse", description="what to do with a recipe that the space does not hold"
    )

    @field_validator("recipes", mode="before")
    @classmethod
    def _to_tuple(cls, given: object) -> object:
        return tuple(given) if isinstance(given, list) else given


class Finalists(Section):
    """How the best recipes become a champion: trained again from fresh seeds, with an annealed schedule."""

    recipes: int = Field(3, ge=0, description="how many of the best distinct recipes are confirmed; 0 skips it all")
    seeds: int = Field(3, ge=1, description="fresh seeds for each")
    epochs: int = Field(18, ge=1, description="epochs of each training")
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    images: Literal["all", "slice"] = Field("all", description="the whole training part, or the study's slice of it")
    refit: Literal["everything", "none"] = Field(
        "everything", description="train the chosen recipe on training and validation images, or keep its first seed"
    )
    ensemble: int = Field(
        0,
        ge=0,
        description="members of one model that averages their probabilities: the best recipes, then further seeds of "
        "them; 0 takes the best alone",
    )
    model_name: str = Field(
        "fmnist-search",
        pattern=NAME_PATTERN,
        description=f"registered model; by default `fmnist-search-DATASET` where the dataset is not {DEFAULT_DATASET}",
    )

    @model_validator(mode="after")
    def _check_ensemble_size(self) -> Finalists:
        if self.ensemble == 1:
            raise UserError("finalists.ensemble: 1 is no ensemble; give 2 or more, or 0 to take the best alone")
        if self.recipes and self.ensemble > self.recipes * self.seeds:
            raise UserError(
                f"finalists.ensemble: {self.ensemble} members are more than the {self.recipes * self.seeds} finalists "
                f"that recipes = {self.recipes} with seeds = {self.seeds} make; give more of these, or fewer members"
            )
        return self

    def for_dataset(self, dataset: str) -> Finalists:
        """The same for a study of this dataset, whose models compare with none of another.

        So they are registered apart, unless the study names the model itself.
        """
        if dataset == DEFAULT_DATASET or "model_name" in self.model_fields_set:
            return self
        return self.model_copy(update={"model_name": f"{self.model_name}-{dataset}"})


def _check_workers(given: object) -> object:
    if given == "auto" or (isinstance(given, int) and not isinstance(given, bool) and given > 0):
        return given
    raise UserError(f"execution.workers: {given!r} is no number of trials at a time; give 1 or more, or 'auto'")


class ExecutionSection(Section):
    """How trials run; decided once a study and kept for those that follow."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    workers: Annotated[Literal["auto"] | PositiveInt, BeforeValidator(_check_workers)] = Field(
        "auto", description="trials at a time; auto takes what cores, memory or the card hold"
    )
    threads: int = Field(0, ge=0, description="intra-op threads of a trial on a CPU; 0 takes one")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: Literal["plain", "graph"] = Field(
        "plain", description="graph captures training steps in CUDA graphs, which is experimental"
    )
    deterministic: bool = Field(False, description="deterministic algorithms alone, which may be slower")
