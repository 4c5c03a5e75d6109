"""Study files: TOML plus overrides become one validated `StudyConfig`; every mistake becomes one line.

What a `[space]` table may say stands in `domains.py`, what all others may say in `sections.py`.
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
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from fmnist_search.config.conditional_space import (
    domain_values,
    hyperparameter_groups,
    space_size,
    unconditional_ranges,
)
from fmnist_search.config.origins import Origins, find_origins
from fmnist_search.config.sections import (
    NAME_PATTERN,
    Budget,
    Cmaes,
    ExecutionSection,
    Finalists,
    Grid,
    Halving,
    OneEpoch,
    Pruner,
    Sampler,
    Section,
    Start,
    Tpe,
)
from fmnist_search.config.space import Domain, Fixed, Space, bounds, parse_space, shared_hyperparameters
from fmnist_search.config.toml_files import read_toml
from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe import families
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.hyperparameters import hyperparameters
from fmnist_search.recipe.recipe import Recipe

MAX_GRID_SIZE = 10_000
"""Recipes of a grid search: more of them no study will ever train."""


def _parse_data(table: object) -> Data:
    if isinstance(table, Data):
        return table
    if not isinstance(table, Mapping):
        raise UserError(f"data: {table!r} is no table; write [data] above its keys")
    return Recipe.from_dict({"batch_size": 2, "data": table}).data


class StudyConfig(Section):
    """A study: its question, what it searches, what it may spend, how its champion is found."""

    name: str = Field(pattern=NAME_PATTERN, description="under which it is found and continued")
    question: str = Field("", description="what it is to find out")
    builds_on: str = Field("", description="the study whose answer it takes as its ground")
    experiment: str = Field("fmnist-search", min_length=1, description="experiment in MLflow")
    seed: int = Field(0, ge=0, description="of all that it draws, the split of the images apart")
    data: Annotated[Data, PlainValidator(_parse_data), PlainSerializer(dataclasses.asdict)] = Data()
    sampler: Sampler = Tpe()
    pruner: Pruner = Halving()
    budget: Budget
    start: Start = Start()
    space: Annotated[Space, PlainValidator(parse_space), PlainSerializer(Space.to_toml_table)]
    finalists: Finalists = Field(Finalists(), validate_default=True)
    execution: ExecutionSection = ExecutionSection()
    _warnings: tuple[str, ...] = PrivateAttr(())
    _origins: Origins = PrivateAttr(default_factory=Origins)

    @field_validator("finalists")
    @classmethod
    def _set_model_name(cls, finalists: Finalists, before: ValidationInfo) -> Finalists:
        data = before.data.get("data")  # none where it is wrong itself
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
            raise UserError("data.validation: a study judges its trials on validation images; hold some back")
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> StudyConfig:
        if not self.budget.is_finite and not isinstance(self.sampler, Grid):
            raise UserError("budget: a study needs an end; give trials, minutes or both")
        return self

    @model_validator(mode="after")
    def _check_pruner(self) -> StudyConfig:
        epochs, rung = self.budget.epochs, self.pruner.first_rung(self.budget.epochs)
        if rung >= epochs and (epochs > 1 or isinstance(self.pruner, OneEpoch)):
            raise UserError(
                f"pruner: {self.pruner.name!r} first looks at a trial after epoch {rung}, and budget.epochs = {epochs} "
                "is the last; look earlier, train longer, or take the pruner 'none'"
            )
        if isinstance(self.pruner, OneEpoch):
            trials, survivors = self.budget.trials, self.pruner.survivors
            if trials is None:
                raise UserError("pruner: 'one-epoch' must know how many candidates there are; give budget.trials")
            if trials <= survivors:
                raise UserError(
                    f"pruner.survivors: {survivors} of budget.trials = {trials} leave no candidates to choose from; "
                    "give more trials or fewer survivors"
                )
        return self

    @model_validator(mode="after")
    def _check_sampler(self) -> StudyConfig:
        if isinstance(self.sampler, Grid):
            if endless := [name for name, domain in self.domains() if domain_values(domain) is None]:
                raise UserError(*(f"{name}: a grid has no end of it; give a list or a step" for name in endless))
            if (count := space_size(self.space).recipe_count) > MAX_GRID_SIZE:
                raise UserError(
                    f"sampler: a grid of {count:,} recipes; narrow the space to {MAX_GRID_SIZE:,} at most, or take "
                    "another sampler"
                )
        if isinstance(self.sampler, Cmaes) and not unconditional_ranges(self.space):
            raise UserError(
                "sampler: 'cmaes' moves along ranges that every recipe has, and this space holds none; give one as "
                "{ low = .., high = .. }, or take 'tpe'"
            )
        return self

    def domains(self) -> Iterator[tuple[str, Domain]]:
        """Every domain under its key in the study file."""
        yield from ((f"space.common.{name}", domain) for name, domain in self.space.common.items())
        for family, domains in self.space.by_family.items():
            yield from ((f"space.{family}.{name.removeprefix('model.')}", domain) for name, domain in domains.items())

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, object] | None = None) -> StudyConfig:
        """The study of a file, with values overridden by dotted name.

        An override is a key of the file (`budget.trials`) or a hyperparameter, which it pins (`model.depth`).

        Raises:
            UserError: no such file, not TOML, or mistakes in it: one line each, with file, key and remedy.
        """
        try:
            tables = _resolve_recipe_paths(read_toml(path), Path(path).parent)
            chosen = {key: tables.get(key) for key in ("sampler", "pruner")}
            written = copy.deepcopy(tables)
            overridden = _apply_overrides(tables, overrides or {})
            config = cls.from_dict(overridden)
            config._warnings = tuple(_unused_settings(chosen, config))
            config._origins = find_origins(config._to_tables(), written, overridden, str(path))
            return config
        except UserError as error:
            raise UserError(
                *(line if line.startswith(str(path)) else f"{path}: {line}" for line in error.lines)
            ) from None

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> StudyConfig:
        """The study of such tables.

        Raises:
            UserError: one line per mistake, with key, value and remedy.
        """
        try:
            return cls.model_validate(tables)
        except ValidationError as error:
            raise UserError(
                *dict.fromkeys(line for details in error.errors() for line in _error_lines(details))
            ) from None

    @property
    def independently_sampled(self) -> list[str]:
        """The hyperparameters that a model-based sampler cannot model and samples at random, by qualified name."""
        groups = hyperparameter_groups(self.space)
        joint = self.sampler.joint_groups(groups)
        modelled = {name for group in joint for name in group}
        return sorted({name for group in groups for name in group} - modelled) if joint else []

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user might not expect of how file and overrides came together, in a line each."""
        return self._warnings

    @property
    def origins(self) -> dict[str, str]:
        """Where each value comes from, by key: the study file, the command line or a default; empty without a file."""
        return self._origins.by_key

    def to_toml(self) -> str:
        """The resolved study file: every value spelled out. Loading it gives an equal study."""
        return tomli_w.dumps(self._to_tables())

    def _to_tables(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)

    def comparability_key(self) -> dict[str, str]:
        """What must stay the same while a study lives, by key: otherwise its trials could not be compared."""
        identity = {"seed": str(self.seed), "budget.epochs": str(self.budget.epochs)}
        identity |= {f"data.{name}": format_value(value) for name, value in vars(self.data).items()}
        identity["space.common.family"] = ", ".join(self.space.families)
        identity |= {f"space.common.{name}": str(domain) for name, domain in self.space.common.items()}
        for family, domains in self.space.by_family.items():
            identity |= {f"space.{family}.{name.removeprefix('model.')}": str(d) for name, d in domains.items()}
        return identity


# --------------------------------------------------------------------------------------- its errors


def _error_lines(details: ErrorDetails) -> list[str]:
    """One mistake that pydantic found, as lines of ours."""
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return list(cause.lines)
    location = [str(part) for part in details["loc"]]
    beside = _sibling_keys(location)
    if len(location) > 1 and location[0] in ("sampler", "pruner"):
        del location[1]  # the variant's name, which pydantic puts between
    key = ".".join(location) or "study"
    kind, given = details["type"], details["input"]
    if kind == "extra_forbidden":
        return [f"{key}: unknown key; {did_you_mean(location[-1], beside)}"]
    if kind == "missing":
        return [f"{key}: is missing; every study file needs it"]
    if kind == "union_tag_invalid":
        context = details["ctx"]
        names = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
        return [f"{key}: no {key} {context['tag']!r}; {did_you_mean(str(context['tag']), names)}"]
    if kind == "string_pattern_mismatch":
        return [f"{key}: {given!r} is no usable name; use letters, digits, spaces and . _ + @ -"]
    if kind in ("model_type", "model_attributes_type"):
        return [f"{key}: {given!r} is no table; write [{key}] above its keys"]
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return [f"{key}: {message}" if isinstance(given, Mapping) else f"{key}: {given!r} {message}"]


def _sibling_keys(location: list[str]) -> list[str]:
    """The keys that a study file knows where an unknown one stood."""
    fields = StudyConfig.model_fields
    if len(location) == 1:
        return list(fields)
    section: Any = fields[location[0]].annotation
    variants = getattr(section, "__args__", (section,))
    chosen = [v for v in variants if len(variants) > 1 and v.model_fields["name"].default == location[1]]
    return [name for variant in chosen or variants for name in getattr(variant, "model_fields", ())]


def _apply_overrides(tables: dict[str, Any], overrides: Mapping[str, object]) -> dict[str, Any]:
    """The tables with other values; the family first, since it says whose hyperparameters the others are."""
    for name in sorted(overrides, key=lambda name: name != "model.family"):
        value = overrides[name]
        if name.split(".")[0] in StudyConfig.model_fields:
            _set_value(tables, name.split("."), value)
        elif name == "model.family":
            _fix_family(tables, value)
        elif name.startswith("model."):
            _fix_model_hyperparameter(tables, name, value)
        elif name in shared_hyperparameters():
            _fix_hyperparameter(_get_or_create_table(tables, "space", "common"), name, value)
        else:
            raise UserError(f"--set {name}: unknown name; {_override_suggestion(name)}")
    return tables


def _resolve_recipe_paths(tables: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tables, with the recipe files that they name found from the study file's folder."""
    start = tables.get("start")
    if isinstance(start, dict) and isinstance(start.get("recipes"), list):
        start["recipes"] = [str(folder / entry) if is_recipe_file(entry) else entry for entry in start["recipes"]]
    return tables


def is_recipe_file(entry: object) -> bool:
    """Whether an entry of `start.recipes` names a file."""
    return isinstance(entry, str) and entry != "champion" and not entry.startswith(("study:", "preset:"))


def _unused_settings(chosen: Mapping[str, Any], config: StudyConfig) -> Iterator[str]:
    """Settings of a sampler or pruner that an override has put another one in the place of."""
    for key, table in chosen.items():
        now = getattr(config, key).name
        if isinstance(table, dict) and (before := _selected_name(key, table)) != now:
            settings = [f"{key}.{name}" for name in table if name != "name"]
            if settings:
                yield f"{', '.join(settings)} belongs to {before!r} and does nothing for {now!r}"


def _selected_name(key: str, table: Mapping[str, Any]) -> object:
    """Which sampler or pruner a table is about: one without a name is about the default."""
    return table.get("name", StudyConfig.model_fields[key].default.name)


def _override_suggestion(name: str) -> str:
    """The nearest name, or the nearest table where it is the table's that is misspelt."""
    shared = shared_hyperparameters()
    group, dot, last = name.partition(".")
    parts = {part for other in shared for part in other.split(".")}
    if dot and not {group, last} & parts:
        return did_you_mean(group, StudyConfig.model_fields)
    return did_you_mean(name, [*shared, *StudyConfig.model_fields])


def _set_value(tables: dict[str, Any], path: list[str], value: object) -> None:
    *groups, last = path
    given = tables.get(last)
    if path in (["sampler"], ["pruner"]) and isinstance(given, dict) and _selected_name(last, given) == value:
        return  # its settings stay
    for group in groups:
        inner = tables.get(group)
        if isinstance(inner, str) and group in ("sampler", "pruner"):
            tables[group] = {"name": inner}
        tables = _get_or_create_table(tables, group)
    tables[last] = value


def _get_or_create_table(tables: dict[str, Any], *path: str) -> dict[str, Any]:
    """The table of that path, made where it is missing.

    Raises:
        UserError: something else stands there.
    """
    for position, name in enumerate(path):
        inner = tables.setdefault(name, {})
        if not isinstance(inner, dict):
            key = ".".join(path[: position + 1])
            raise UserError(f"{key}: {inner!r} is no table; write [{key}] above its keys")
        tables = inner
    return tables


def _fix_family(tables: dict[str, Any], value: object) -> None:
    """Search these families alone: the tables of the others go."""
    space = _get_or_create_table(tables, "space")
    _get_or_create_table(space, "common")["family"] = value
    kept = value if isinstance(value, list) else [value]
    for other in FAMILIES.keys() & space.keys():
        if other not in kept:
            del space[other]


def _fix_model_hyperparameter(tables: dict[str, Any], name: str, value: object) -> None:
    """Pin a hyperparameter in every family of the study that has it."""
    space = _get_or_create_table(tables, "space")
    default = [family for family in space if family in FAMILIES] or ["cnn"]
    searched = _get_or_create_table(tables, "space", "common").get("family", default)
    architectures = [families.get(family) for family in (searched if isinstance(searched, list) else [searched])]
    having = [family for family in architectures if name in hyperparameters(family, "model.")]
    if not having:
        known = [key for family in architectures for key in hyperparameters(family, "model.")]
        raise UserError(f"--set {name}: unknown name; {did_you_mean(name, known)}")
    for family in having:
        _get_or_create_table(tables, "space", family.family)[name.removeprefix("model.")] = value


def _fix_hyperparameter(table: dict[str, Any], name: str, value: object) -> None:
    """Pin a dotted name, whatever domain the file gives it and however it spells it."""
    group, _, last = name.rpartition(".")
    if group and isinstance(table.get(group), dict):
        table[group].pop(last, None)
    table[name] = value
