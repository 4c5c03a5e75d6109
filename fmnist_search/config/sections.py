"""The tables of a study file, each with its keys, their limits and meanings: budget, start, finalists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe.datasets import DEFAULT_DATASET
from fmnist_search.recipe.recipe import MAX_EPOCHS
from fmnist_search.results.objectives import ACCURACY, COST_LABELS
from fmnist_search.results.own_costs import find_own_cost
from fmnist_search.workspace import MAX_NAME_BYTES, NAME_PATTERN

MAX_TRIALS = 1_000_000
"""Trials of a study, and whatever counts them. Each start of a search reads all trials."""

DEFAULT_LOSSES = 300

MAX_MINUTES = 60 * 24 * 3_660
"""Minutes of ten years."""

MAX_MULT_ADDS = 10**15
"""Multiply-adds of one image: more than any network of at most 50 million parameters has."""

MAX_FINALISTS = 1_000
"""Recipes, seeds and members of an ensemble, each."""

# `workspace.check_name` checks the length of new names; archived studies have longer ones.
Name = Annotated[str, Field(pattern=NAME_PATTERN, json_schema_extra={"maxLength": MAX_NAME_BYTES})]


class Section(BaseModel):
    """A table of a study file. It is frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )


def section_of(annotation: object) -> type[Section] | None:
    """Return the section that the annotation of a field names, also if it may be left out; None for other values."""
    parts = [part for part in get_args(annotation) or (annotation,) if part is not type(None)]
    only = parts[0] if len(parts) == 1 else None
    return only if isinstance(only, type) and issubclass(only, Section) else None


def expand_name(default: str) -> BeforeValidator:
    """Return a validator that turns a bare name into a table, and adds the default name to a table without one."""

    def expand(value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default, **value} if isinstance(value, Mapping) else value

    return BeforeValidator(expand)


class Objective(Section):
    """What a study optimizes: the validation accuracy, and perhaps a cost of the network or of its training."""

    metrics: tuple[str, ...] = Field(
        (ACCURACY,),
        description=f"`{ACCURACY}`, which is maximized, and at most one of {', '.join(COST_LABELS)} or "
        "of the costs that `plugins` register, which is minimized; with two metrics no pruner is defined",
        json_schema_extra={
            "prefixItems": [{"const": ACCURACY}, {"anyOf": [{"enum": list(COST_LABELS)}, {"type": "string"}]}],
            "items": False,
            "minItems": 1,
        },
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def _check_metrics(cls, given: object) -> tuple[str, ...]:
        example = f'give ["{ACCURACY}"], or with one of {", ".join(COST_LABELS)} behind it'
        if not isinstance(given, list | tuple) or not given:
            raise UserError(f"objective.metrics: {given!r} is not a list of metrics; {example}")
        for name in given:
            if name not in (ACCURACY, *COST_LABELS) and not (isinstance(name, str) and find_own_cost(name)):
                remedy = did_you_mean(str(name), [ACCURACY, *COST_LABELS])
                own = "a cost of your own needs the module that registers it under plugins.modules"
                raise UserError(f"objective.metrics: no metric {name!r}; {remedy}; {own}")
        if repeated := next((name for name in given if given.count(name) > 1), None):
            raise UserError(f"objective.metrics: names {repeated!r} twice; {example}")
        if given[0] != ACCURACY:
            raise UserError(f"objective.metrics: {given[0]!r} comes first; {example}")
        if len(given) > 2:
            raise UserError(f"objective.metrics: {len(given)} metrics are too many; {example}")
        return tuple(given)

    @property
    def cost(self) -> str | None:
        """The metric that is minimized; None if the accuracy is the only one."""
        return self.metrics[1] if len(self.metrics) > 1 else None


class Budget(Section):
    """The limits of a study, in total: a study that is run again continues and gets no new budget."""

    trials: int | None = Field(None, ge=1, le=MAX_TRIALS, description="trials in total, completed, pruned or failed")
    minutes: float | None = Field(
        None, ge=0.001, le=MAX_MINUTES, description="minutes of searching in total, without the finalists"
    )
    total_epochs: int | None = Field(
        None, ge=1, le=MAX_TRIALS * MAX_EPOCHS, description="epochs of all trials together"
    )
    epochs: int = Field(9, ge=1, le=MAX_EPOCHS, description="epochs of a trial that is not pruned")
    trial_minutes: float | None = Field(None, gt=0, le=MAX_MINUTES, description="minutes after which a trial is pruned")
    max_mult_adds: int | None = Field(
        None,
        ge=1,
        le=MAX_MULT_ADDS,
        description="multiply-adds of one image; a network with more is refused: it is not trained, and is no trial of "
        "the budget",
    )
    max_seconds_per_epoch: float | None = Field(
        None,
        gt=0,
        le=60 * MAX_MINUTES,
        description="seconds of an epoch with validation; a trial whose first epoch takes longer is pruned, and a "
        "network that would take longer at the speed of similar trials is refused",
    )
    target: float | None = Field(
        None, gt=0, description="validation accuracy, between 0 and 1, at which the study stops"
    )
    patience: int | None = Field(
        None, ge=1, le=MAX_TRIALS, description="trials in a row without a better one, after which the study stops"
    )
    failures: int = Field(10, ge=1, le=MAX_TRIALS, description="failed trials after which the study stops")
    losses: int = Field(
        DEFAULT_LOSSES,
        ge=0,
        le=MAX_TRIALS,
        description="workers lost by no fault of their trials, as with their machine, after which the study stops; "
        "0 for no limit",
    )

    @model_validator(mode="after")
    def _check_target(self) -> Budget:
        if self.target is not None and self.target > 1:
            remedy = f"; {self.target:g} % is {self.target / 100:g}" if self.target <= 100 else ""
            raise UserError(f"budget.target: {self.target:g} is not an accuracy between 0 and 1{remedy}")
        return self

    @property
    def is_finite(self) -> bool:
        """Whether a limit is sure to be reached."""
        return any(limit is not None for limit in (self.trials, self.minutes, self.total_epochs, self.patience))


class Plugins(Section):
    """Modules of your own that register families of networks (docs/extending.md). Their code runs."""

    modules: tuple[str, ...] = Field(
        (), description="Python files, by their path from the folder of this file, or names of modules"
    )

    @field_validator("modules", mode="before")
    @classmethod
    def _to_tuple(cls, given: object) -> object:
        return tuple(given) if isinstance(given, list) else given


class Start(Section):
    """Recipes that are tried before the sampler chooses any."""

    recipes: tuple[str | dict[str, Any], ...] = Field(
        (),
        description="recipe files, `preset:NAME`, `study:NAME` (its best trial), `champion`, or tables of values; the "
        "sampler chooses the values that are missing",
    )
    outside: Literal["refuse", "try"] = Field("refuse", description="what to do with a recipe outside the space")

    @field_validator("recipes", mode="before")
    @classmethod
    def _to_tuple(cls, given: object) -> object:
        return tuple(given) if isinstance(given, list) else given


class Finalists(Section):
    """How a champion is chosen: the best recipes are trained again with new seeds and an annealed learning rate."""

    recipes: int = Field(
        3,
        ge=0,
        le=MAX_FINALISTS,
        description="number of best distinct recipes that are trained again; 0 chooses no champion",
    )
    seeds: int = Field(3, ge=1, le=MAX_FINALISTS, description="new seeds for each")
    epochs: int = Field(18, ge=1, le=MAX_EPOCHS, description="epochs of each training")
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    images: Literal["all", "slice"] = Field(
        "all", description="all training images, or only those that the study trains on"
    )
    refit: Literal["everything", "none"] = Field(
        "everything",
        description="everything trains the chosen recipe on training and validation images; none keeps its first seed",
    )
    ensemble: int = Field(
        0,
        ge=0,
        le=MAX_FINALISTS,
        description="members of a model that averages their probabilities: the best recipes, then more seeds of them; "
        "0 takes the best recipe alone",
    )
    model_name: Name = Field(
        "fmnist-search",
        description=f"name of the registered model; `fmnist-search-DATASET` for datasets other than {DEFAULT_DATASET}",
    )

    @model_validator(mode="after")
    def _check_ensemble_size(self) -> Finalists:
        if self.ensemble == 1:
            raise UserError("finalists.ensemble: 1 is not an ensemble; give 2 or more, or 0 to take the best alone")
        if self.recipes and self.ensemble > self.recipes * self.seeds:
            raise UserError(
                f"finalists.ensemble: {self.ensemble} members are more than the {self.recipes * self.seeds} finalists "
                f"that recipes = {self.recipes} with seeds = {self.seeds} make; give more of these, or fewer members"
            )
        return self

    def for_dataset(self, dataset: str) -> Finalists:
        """Return the settings for a study of this dataset.

        Models of different datasets cannot be compared, so they are registered under different names, unless the
        study names the model itself.
        """
        if dataset == DEFAULT_DATASET or "model_name" in self.model_fields_set:
            return self
        return self.model_copy(update={"model_name": f"{self.model_name}-{dataset}"})
