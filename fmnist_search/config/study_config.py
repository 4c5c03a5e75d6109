"""Study files: TOML and overrides become a validated `StudyConfig`, and every mistake becomes a line of an error.

What a `[space]` table may hold is defined in `space`, all other tables in `sections`, `execution`, `samplers` and
`pruners`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from fmnist_search.config.conditional_space import hyperparameter_groups, space_size, unconditional_ranges
from fmnist_search.config.domain import Domain, Fixed, bounds, domain_values, is_ordered
from fmnist_search.config.execution import ExecutionSection
from fmnist_search.config.messages import error_lines
from fmnist_search.config.origins import Origins, find_origins
from fmnist_search.config.overrides import apply_overrides, unused_settings
from fmnist_search.config.pruners import DEFAULT_PRUNER, Extrapolation, NoPruner, OneEpoch, Pruner
from fmnist_search.config.samplers import DEFAULT_SAMPLER, Cmaes, FreezeThaw, Grid, Sampler
from fmnist_search.config.sections import Budget, Finalists, Name, Objective, Section, Start
from fmnist_search.config.shipped_studies import copy_hint
from fmnist_search.config.space import Space, parse_space
from fmnist_search.config.toml_files import read_toml, resolve_recipe_paths
from fmnist_search.errors import UserError
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.hyperparameters import MAX_SEED
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.workspace import NAME_PATTERN, check_name, check_study_name

MAX_GRID_SIZE = 10_000
"""The largest number of recipes of a grid."""


def _parse_data(table: object) -> Data:
    if isinstance(table, Data):
        return table
    if not isinstance(table, Mapping):
        raise UserError(f"data: {table!r} is not a table; write [data] above its keys")
    return Recipe.from_dict({"batch_size": 2, "data": table}).data


class StudyConfig(Section):
    """A study: its question, its space, its budget, and how it chooses a champion."""

    name: Name = Field(description="name under which the study is stored and resumed")
    question: str = Field("", description="question that the study answers")
    builds_on: str = Field("", description="earlier study whose answer this study assumes")
    experiment: str = Field(
        "fmnist-search", description="experiment in MLflow", json_schema_extra={"pattern": NAME_PATTERN}
    )
    seed: int = Field(
        0, ge=0, le=MAX_SEED, description="seed of everything that is random, except the split of the images"
    )
    data: Annotated[Data, PlainValidator(_parse_data), PlainSerializer(dataclasses.asdict)] = Data()
    objective: Objective = Objective()
    sampler: Sampler = DEFAULT_SAMPLER
    pruner: Pruner = DEFAULT_PRUNER
    budget: Budget
    start: Start = Start()
    space: Annotated[Space, PlainValidator(parse_space), PlainSerializer(Space.to_toml_table)]
    finalists: Finalists = Field(Finalists(), validate_default=True)
    execution: ExecutionSection = ExecutionSection()
    _warnings: tuple[str, ...] = PrivateAttr(())
    _origins: Origins = PrivateAttr(default_factory=Origins)

    # ----------------------------------------------------------------------------------- checks

    @model_validator(mode="before")
    @classmethod
    def _leave_out_pruner(cls, tables: Any) -> Any:
        """Let a study that names no pruner have none, if its sampler pauses trials itself or it has two metrics.

        Pruners compare one value.
        """
        if not isinstance(tables, Mapping) or "pruner" in tables:
            return tables
        sampler = tables.get("sampler")
        name = sampler.get("name") if isinstance(sampler, Mapping) else getattr(sampler, "name", sampler)
        objective = tables.get("objective")
        metrics = objective.get("metrics") if isinstance(objective, Mapping) else getattr(objective, "metrics", None)
        has_cost = isinstance(metrics, list | tuple) and len(metrics) > 1
        return {**tables, "pruner": NoPruner()} if has_cost or name == FreezeThaw().name else tables

    @field_validator("finalists")
    @classmethod
    def _set_model_name(cls, finalists: Finalists, before: ValidationInfo) -> Finalists:
        data = before.data.get("data")  # None if the table is invalid
        return finalists.for_dataset(data.dataset) if data else finalists

    @model_validator(mode="after")
    def _check_data(self) -> StudyConfig:
        domain = self.space.common.get("batch_size", Fixed(Recipe().batch_size))
        largest = max(float(value) for value in bounds(domain))
        if largest > self.data.training_count:
            raise UserError(
                f"space.common.batch_size: {largest:g} is larger than the {self.data.training_count} training images; "
                "take smaller batches or more images"
            )
        if not self.data.validation:
            raise UserError("data.validation: a study compares its trials on validation images; give at least 1")
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> StudyConfig:
        if not self.budget.is_finite and not isinstance(self.sampler, Grid):
            raise UserError("budget: a study needs an end; give trials, minutes or both")
        return self

    @model_validator(mode="after")
    def _check_pruner(self) -> StudyConfig:
        epochs, rung = self.budget.epochs, self.pruner.first_rung(self.budget.epochs)
        if self.objective.cost and not isinstance(self.pruner, NoPruner):
            raise UserError(
                f"pruner: {self.pruner.name!r} compares trials by one value, and objective.metrics names two; leave "
                "out the pruner, or take 'none'"
            )
        if rung >= epochs and (epochs > 1 or isinstance(self.pruner, OneEpoch)):
            raise UserError(
                f"pruner: {self.pruner.name!r} can prune a trial after epoch {rung} at the earliest, and "
                f"budget.epochs = {epochs} is the last; prune earlier, train longer, or take the pruner 'none'"
            )
        if isinstance(self.pruner, OneEpoch):
            trials, survivors = self.budget.trials, self.pruner.survivors
            if trials is None:
                raise UserError("pruner: 'one-epoch' needs the number of trials; give budget.trials")
            if trials <= survivors:
                raise UserError(
                    f"pruner.survivors: {survivors} of budget.trials = {trials} leave no candidates to choose from; "
                    "give more trials or fewer survivors"
                )
        return self

    @model_validator(mode="after")
    def _check_sampler(self) -> StudyConfig:
        if isinstance(self.sampler, Grid):
            if infinite := [name for name, domain in self.domains() if domain_values(domain) is None]:
                raise UserError(
                    *(f"{name}: is infinite, which a grid cannot be; give a list or a step" for name in infinite)
                )
            if (count := space_size(self.space).recipe_count) > MAX_GRID_SIZE:
                raise UserError(
                    f"sampler: a grid of {count:,} recipes; reduce the space to at most {MAX_GRID_SIZE:,}, or take "
                    "another sampler"
                )
        if isinstance(self.sampler, Cmaes) and self.objective.cost:
            raise UserError(
                "sampler: 'cmaes' optimizes one value, and objective.metrics names two; take 'tpe', 'gp', 'random', "
                "'qmc' or 'grid'"
            )
        if isinstance(self.sampler, Cmaes) and not unconditional_ranges(self.space):
            raise UserError(
                "sampler: 'cmaes' needs a range that every recipe has, and this space has none; give one as "
                "{ low = .., high = .. }, or take 'tpe'"
            )
        if isinstance(self.sampler, FreezeThaw):
            self._check_freeze_thaw()
        if isinstance(self.sampler, FreezeThaw) or isinstance(self.pruner, Extrapolation):
            self._check_ordered()
        return self

    def _check_freeze_thaw(self) -> None:
        if self.objective.cost:
            raise UserError(
                "sampler: 'freeze-thaw' compares trials by one value, and objective.metrics names two; take 'tpe', "
                "'gp', 'random', 'qmc' or 'grid'"
            )
        if not isinstance(self.pruner, NoPruner):
            raise UserError(
                f"pruner: {self.pruner.name!r} cannot be used with the sampler 'freeze-thaw', which pauses trials "
                "itself; leave it out, or take 'none'"
            )
        if self.budget.epochs < 2:
            raise UserError(
                f"budget.epochs: {self.budget.epochs} leaves the sampler 'freeze-thaw' nothing to pause; train at "
                "least 2 epochs, or take 'tpe'"
            )

    def _check_ordered(self) -> None:
        varying = [domain for group in hyperparameter_groups(self.space) for domain in group.values()]
        if not any(is_ordered(domain) for domain in varying):
            key, name, remedy = (
                ("sampler", self.sampler.name, "tpe")
                if isinstance(self.sampler, FreezeThaw)
                else ("pruner", self.pruner.name, "halving")
            )
            raise UserError(
                f"{key}: {name!r} needs a hyperparameter whose values are numbers, by which recipes can be compared, "
                f"and this space has none; give a range or a list of numbers, or take {remedy!r}"
            )

    # ---------------------------------------------------------------------------------- reading

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, object] | None = None) -> StudyConfig:
        """Return the study of a TOML file, with the overrides of `overrides.apply_overrides`.

        Raises:
            UserError: if there is no such file, it is not TOML, or it has mistakes. Each line names file, key and
                remedy.
        """
        try:
            tables = resolve_recipe_paths(read_toml(path, copy_hint(Path(path))), Path(path).parent)
            written = copy.deepcopy(tables)
            overridden = apply_overrides(tables, overrides or {}, cls.model_fields.keys())
            config = cls.from_dict(overridden)
            config.check_names()
            chosen = {"sampler": config.sampler.name, "pruner": config.pruner.name}
            config._warnings = tuple(unused_settings(written, chosen))
            config._origins = find_origins(config._to_tables(), written, overridden, str(path))
            return config
        except UserError as error:
            raise UserError(
                *(line if line.startswith(str(path)) else f"{path}: {line}" for line in error.lines)
            ) from None

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> StudyConfig:
        """Return the study of the tables of a study file.

        Raises:
            UserError: if the tables have mistakes, with a line for each: key, value and remedy.
        """
        try:
            return cls.model_validate(tables)
        except ValidationError as error:
            lines = (line for details in error.errors() for line in error_lines(details, cls))
            raise UserError(*dict.fromkeys(lines)) from None

    def continuing(self, stored: StudyConfig | None) -> StudyConfig:
        """Return this config for a study that was stored with another one, which decides what this one leaves open."""
        if stored is None:
            return self
        return self.model_copy(update={"sampler": self.sampler.continued(stored.sampler)})

    # -------------------------------------------------------------------------------- attributes

    def domains(self) -> Iterator[tuple[str, Domain]]:
        """Yield every domain with its key in the study file."""
        yield from ((f"space.common.{name}", domain) for name, domain in self.space.common.items())
        for family, domains in self.space.by_family.items():
            yield from ((f"space.{family}.{name.removeprefix('model.')}", domain) for name, domain in domains.items())

    @property
    def independently_sampled(self) -> list[str]:
        """The hyperparameters that a model-based sampler cannot model and samples at random, by qualified name."""
        groups = hyperparameter_groups(self.space)
        joint = self.sampler.joint_groups(groups)
        modelled = {name for group in joint for name in group}
        return sorted({name for group in groups for name in group} - modelled) if joint else []

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for each effect of the overrides that the user may not expect."""
        return self._warnings

    @property
    def origins(self) -> dict[str, str]:
        """The origin of each value by key: the study file, the command line or a default. Empty without a file."""
        return self._origins.by_key

    def check_names(self) -> None:
        """Check the names that become parts of paths. `from_dict` does not, so that every stored study can be read.

        Raises:
            UserError: if a name is too long, reserved, or has characters that no name of a folder may have.
        """
        check_study_name("name", self.name)
        check_name("experiment", self.experiment)
        check_name("finalists.model_name", self.finalists.model_name)

    def comparability_key(self) -> dict[str, str]:
        """Return, by key, what must not change while a study is resumed, so that its trials can be compared."""
        identity = {"seed": str(self.seed), "budget.epochs": str(self.budget.epochs)}
        if self.objective.cost:
            identity["objective.metrics"] = ", ".join(self.objective.metrics)
        identity |= {f"data.{name}": format_value(value) for name, value in vars(self.data).items()}
        identity["space.common.family"] = ", ".join(self.space.families)
        return identity | {key: str(domain) for key, domain in self.domains()}

    def with_backend(self, backend: str) -> StudyConfig:
        """Return the study with another `execution.backend`.

        Raises:
            UserError: if there is no such backend.
        """
        tables = self._to_tables()
        return StudyConfig.from_dict({**tables, "execution": {**tables["execution"], "backend": backend}})

    def to_toml(self) -> str:
        """Return the resolved study file with every value; loading it returns an equal study."""
        return tomli_w.dumps(self._to_tables())

    def _to_tables(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)

    @model_serializer(mode="wrap")
    def _leave_out_objective(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the objective that studies had before there was a choice, so that they are stored as before."""
        tables: dict[str, Any] = serialize(self)
        if not self.objective.cost:
            tables.pop("objective", None)
        return tables
