"""Study files: TOML and overrides become a validated `StudyConfig`, and every mistake becomes a line of an error.

What a `[space]` table may hold is defined in `space`, all other tables in `sections`, `execution`, `samplers` and
`pruners`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import (
    Field,
    ModelWrapValidatorHandler,
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

from fmnist_search.config.conditional_space import hyperparameter_groups
from fmnist_search.config.domain import Domain, Fixed, bounds
from fmnist_search.config.execution import ExecutionSection
from fmnist_search.config.messages import error_lines
from fmnist_search.config.origins import Origins, find_origins
from fmnist_search.config.overrides import apply_overrides, unnamed_samplers, unused_settings
from fmnist_search.config.plugin_files import load_plugins
from fmnist_search.config.pruners import FALLBACK_PRUNER, NoPruner, Pruner
from fmnist_search.config.samplers import FALLBACK_SAMPLER, FreezeThaw, Grid, Sampler
from fmnist_search.config.search_checks import can_have_freeze_thaw, check_pruner, check_sampler
from fmnist_search.config.sections import Budget, Finalists, Name, Objective, Plugins, Section, Start
from fmnist_search.config.shipped_studies import copy_hint
from fmnist_search.config.space import Space, parse_space
from fmnist_search.config.toml_files import read_toml, resolve_recipe_paths
from fmnist_search.errors import UserError
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.hyperparameters import MAX_SEED
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.workspace import NAME_PATTERN, check_name, check_study_name

SEARCH_KEYS = frozenset({"sampler", "pruner"})
"""The keys that say how a study searches; without either it has the default."""


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
    plugins: Plugins = Plugins()
    data: Annotated[Data, PlainValidator(_parse_data), PlainSerializer(dataclasses.asdict)] = Data()
    objective: Objective = Objective()
    sampler: Sampler = Field(
        FALLBACK_SAMPLER,
        description="By default `freeze-thaw`. `tpe` if the study names a pruner, or has one epoch a trial, two "
        "metrics, or no hyperparameter whose values are numbers.",
    )
    pruner: Pruner = Field(
        FALLBACK_PRUNER,
        description="By default none with `freeze-thaw` and with two metrics, `halving` with all other samplers.",
    )
    budget: Budget
    start: Start = Start()
    space: Annotated[Space, PlainValidator(parse_space), PlainSerializer(Space.to_toml_table)]
    finalists: Finalists = Field(Finalists(), validate_default=True)
    execution: ExecutionSection = ExecutionSection()
    _warnings: tuple[str, ...] = PrivateAttr(())
    _origins: Origins = PrivateAttr(default_factory=Origins)

    # ----------------------------------------------------------------------------------- checks

    @model_validator(mode="wrap")
    @classmethod
    def _choose_search(cls, tables: Any, validate: ModelWrapValidatorHandler[StudyConfig]) -> StudyConfig:
        """Let a study that names neither sampler nor pruner have freeze-thaw, if it can be used."""
        config = validate(tables)
        if not isinstance(tables, Mapping) or not SEARCH_KEYS.isdisjoint(tables):
            return config
        values = dict(config)
        if can_have_freeze_thaw(config.budget, config.objective, config.space):
            values |= {"sampler": FreezeThaw(), "pruner": NoPruner()}
        return cls.model_construct(_fields_set=config.model_fields_set - SEARCH_KEYS, **values)

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
    def _check_search(self) -> Self:
        check_pruner(self.pruner, self.budget, self.objective)
        check_sampler(self.sampler, self.pruner, self.budget, self.objective, self.space)
        return self

    # ---------------------------------------------------------------------------------- reading

    @classmethod
    def load(
        cls, path: str | Path, overrides: Mapping[str, object] | None = None, *, run_plugins: bool = True
    ) -> StudyConfig:
        """Return the study of a TOML file, with the overrides of `overrides.apply_overrides`.

        The modules that `[plugins]` names are loaded before, unless `run_plugins` is false.

        Raises:
            UserError: if there is no such file, it is not TOML, or it has mistakes. Each line names file, key and
                remedy.
        """
        try:
            tables = resolve_recipe_paths(read_toml(path, copy_hint(Path(path))), Path(path).parent)
            if run_plugins:
                load_plugins(tables.get("plugins"), Path(path).parent)
            written = copy.deepcopy(tables)
            overridden = apply_overrides(tables, overrides or {}, cls.model_fields.keys())
            config = cls.from_dict(overridden)
            config.check_names()
            chosen = {"sampler": config.sampler.name, "pruner": config.pruner.name}
            config._warnings = (*unused_settings(written, chosen), *unnamed_samplers(overridden))
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
        """Return this config for a study that was stored with another one, which decides what this one leaves open.

        Raises:
            UserError: if the pruner of the stored one cannot be used with the budget of this one.
        """
        if stored is None:
            return self
        if not self.names_search:
            check_pruner(stored.pruner, self.budget, self.objective)
            return self.model_copy(update={"sampler": stored.sampler, "pruner": stored.pruner})
        return self.model_copy(update={"sampler": self.sampler.continued(stored.sampler)})

    # -------------------------------------------------------------------------------- attributes

    def domains(self) -> Iterator[tuple[str, Domain]]:
        """Return every domain with its key in the study file."""
        return self.space.by_key()

    @property
    def independently_sampled(self) -> list[str]:
        """The hyperparameters that a model-based sampler cannot model and samples at random, by qualified name."""
        groups = hyperparameter_groups(self.space)
        joint = self.sampler.joint_groups(groups)
        modelled = {name for group in joint for name in group}
        return sorted({name for group in groups for name in group} - modelled) if joint else []

    @property
    def names_search(self) -> bool:
        """Whether the study names a sampler or a pruner, and so does not have the default."""
        return not SEARCH_KEYS.isdisjoint(self.model_fields_set)

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
        """Leave out what studies had before there was a choice, so that they are stored as before."""
        tables: dict[str, Any] = serialize(self)
        if not self.objective.cost:
            tables.pop("objective", None)
        if not self.plugins.modules:
            tables.pop("plugins", None)
        return tables
