"""Study files: TOML plus overrides become one validated `StudyConfig`; every mistake becomes one line.

What a `[space]` table may say stands in `domains.py`. Recipes are read and written here too, since nothing below this
module knows TOML.
"""

from __future__ import annotations

import copy
import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from fmnist_search.datasets import DEFAULT_DATASET
from fmnist_search.domains import Domain, Pin, Space, ends, parse_space, shared_hyperparameters
from fmnist_search.errors import UserError, nearest
from fmnist_search.hyperparameters import hyperparameters
from fmnist_search.origins import Origins, origins
from fmnist_search.recipe import FAMILIES, Data, Recipe, family_named, text_of
from fmnist_search.variables import ranges_of_all, size, values

NAME = r"^\w[\w .+@-]{0,199}$"
"""Names become folders and stand in addresses."""

LARGEST_GRID = 10_000
"""Recipes of a grid search: more of them no study will ever train."""


class Section(BaseModel):
    """A table of a study file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class Tpe(Section):
    """Tree-structured Parzen estimator, multivariate and grouped: learns from the trials so far."""

    name: Literal["tpe"] = "tpe"
    startup_trials: int = Field(5, ge=1, description="trials drawn at random before it learns")
    candidates: int = Field(24, ge=1, description="draws of which the most promising one is tried")


class Random(Section):
    """Every trial drawn independently."""

    name: Literal["random"] = "random"


class Gp(Section):
    """Gaussian process, learning from completed trials; what not every recipe has is drawn at random."""

    name: Literal["gp"] = "gp"
    startup_trials: int = Field(10, ge=1, description="completed trials drawn at random before it learns")


class Cmaes(Section):
    """CMA-ES over ranges that every recipe has, learning from completed trials; all else is drawn at random."""

    name: Literal["cmaes"] = "cmaes"
    startup_trials: int = Field(1, ge=0, description="completed trials drawn at random before it begins")
    population: int | None = Field(None, ge=2, description="recipes a generation; by default from the number of ranges")


class Qmc(Section):
    """Quasi-random: a scrambled low-discrepancy sequence over the whole space, which learns nothing."""

    name: Literal["qmc"] = "qmc"
    sequence: Literal["sobol", "halton"] = "sobol"


class Grid(Section):
    """Every recipe of a space of lists and steps, once, in random order."""

    name: Literal["grid"] = "grid"


class Rungs(Section):
    """A pruner that compares trials at rungs."""

    min_epochs: int | None = Field(
        None, ge=1, description="epochs before the first rung; by default 2, or 1 where a trial has 3 at most"
    )
    reduction_factor: int = Field(3, ge=2, description="one in so many goes on from a rung")
    startup_trials: int = Field(1, ge=1, description="results at the first rung before it prunes")

    def first_rung(self, epochs: int) -> int:
        """The epoch after which a trial of so many epochs can first be pruned."""
        return self.min_epochs or (2 if epochs > 3 else 1)


class Quantile(Section):
    """A pruner that compares a trial with all others at the same epoch."""

    startup_trials: int = Field(5, ge=0, description="completed trials before it prunes")
    warmup_epochs: int = Field(0, ge=0, description="epochs in which it never prunes")
    min_trials: int = Field(1, ge=1, description="results at an epoch before it prunes there")

    def first_rung(self, epochs: int) -> int:
        """The epoch after which a trial can first be pruned."""
        return self.warmup_epochs + 1


class Halving(Rungs):
    """Asynchronous successive halving: at each rung the best 1/reduction_factor go on."""

    name: Literal["halving"] = "halving"


class Hyperband(Rungs):
    """Successive halving in brackets that begin to prune at different epochs."""

    name: Literal["hyperband"] = "hyperband"


class Median(Quantile):
    """Ends a trial whose best value so far is below the median of the others at the same epoch."""

    name: Literal["median"] = "median"


class Percentile(Quantile):
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


def _named_or(default: str) -> BeforeValidator:
    """A bare name stands for its table, and a table without a name for the default's."""

    def expand(value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default, **value} if isinstance(value, Mapping) else value

    return BeforeValidator(expand)


Sampler = Annotated[Tpe | Random | Gp | Cmaes | Qmc | Grid, Field(discriminator="name"), _named_or("tpe")]
Pruner = Annotated[
    Halving | Hyperband | Median | Percentile | Patience | OneEpoch | NoPruner,
    Field(discriminator="name"),
    _named_or("halving"),
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
    def _is_a_share(self) -> Budget:
        if self.target is not None and self.target > 1:
            remedy = f"; {self.target:g} % is {self.target / 100:g}" if self.target <= 100 else ""
            raise UserError(f"budget.target: {self.target:g} is no accuracy, which lies between 0 and 1{remedy}")
        return self

    @property
    def is_sure_to_end(self) -> bool:
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
    def _listed(cls, given: object) -> object:
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
        pattern=NAME,
        description=f"registered model; by default `fmnist-search-DATASET` where the dataset is not {DEFAULT_DATASET}",
    )

    @model_validator(mode="after")
    def _has_members_enough(self) -> Finalists:
        if self.ensemble == 1:
            raise UserError("finalists.ensemble: 1 is no ensemble; give 2 or more, or 0 to take the best alone")
        if self.recipes and self.ensemble > self.recipes * self.seeds:
            raise UserError(
                f"finalists.ensemble: {self.ensemble} members are more than the {self.recipes * self.seeds} finalists "
                f"that recipes = {self.recipes} with seeds = {self.seeds} make; give more of these, or fewer members"
            )
        return self

    def of(self, dataset: str) -> Finalists:
        """The same for a study of this dataset, whose models compare with none of another.

        So they are registered apart, unless the study names the model itself.
        """
        if dataset == DEFAULT_DATASET or "model_name" in self.model_fields_set:
            return self
        return self.model_copy(update={"model_name": f"{self.model_name}-{dataset}"})


def _number_or_auto(given: object) -> object:
    if given == "auto" or (isinstance(given, int) and not isinstance(given, bool) and given > 0):
        return given
    raise UserError(f"execution.workers: {given!r} is no number of trials at a time; give 1 or more, or 'auto'")


class ExecutionSettings(Section):
    """How trials run; decided once a study and kept for those that follow."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    workers: Annotated[Literal["auto"] | PositiveInt, BeforeValidator(_number_or_auto)] = Field(
        "auto", description="trials at a time; auto takes what cores, memory or the card hold"
    )
    threads: int = Field(0, ge=0, description="intra-op threads of a trial on a CPU; 0 takes one")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: Literal["plain", "graph"] = Field(
        "plain", description="graph captures training steps in CUDA graphs, which is experimental"
    )
    deterministic: bool = Field(False, description="deterministic algorithms alone, which may be slower")


def _parse_data(table: object) -> Data:
    if isinstance(table, Data):
        return table
    if not isinstance(table, Mapping):
        raise UserError(f"data: {table!r} is no table; write [data] above its keys")
    return Recipe.from_dict({"batch_size": 2, "data": table}).data


class StudyConfig(Section):
    """A study: its question, what it searches, what it may spend, how its champion is found."""

    name: str = Field(pattern=NAME, description="under which it is found and continued")
    question: str = Field("", description="what it is to find out")
    builds_on: str = Field("", description="the study whose answer it takes as its ground")
    experiment: str = Field("fmnist-search", min_length=1, description="experiment in MLflow")
    seed: int = Field(0, ge=0, description="of all that it draws, the split of the images apart")
    data: Annotated[Data, PlainValidator(_parse_data), PlainSerializer(dataclasses.asdict)] = Data()
    sampler: Sampler = Tpe()
    pruner: Pruner = Halving()
    budget: Budget
    start: Start = Start()
    space: Annotated[Space, PlainValidator(parse_space), PlainSerializer(Space.plain)]
    finalists: Finalists = Field(Finalists(), validate_default=True)
    execution: ExecutionSettings = ExecutionSettings()
    _remarks: tuple[str, ...] = PrivateAttr(())
    _origins: Origins = PrivateAttr(default_factory=Origins)

    @field_validator("finalists")
    @classmethod
    def _of_the_dataset(cls, finalists: Finalists, before: ValidationInfo) -> Finalists:
        data = before.data.get("data")  # none where it is wrong itself
        return finalists.of(data.dataset) if data else finalists

    @model_validator(mode="after")
    def _fits_the_data(self) -> StudyConfig:
        domain = self.space.common.get("batch_size", Pin(Recipe().batch_size))
        largest = max(float(value) for value in ends(domain))
        if largest > self.data.training_count:
            raise UserError(
                f"space.common.batch_size: {largest:g} is larger than the {self.data.training_count} training images; "
                "take smaller batches or more images"
            )
        if not self.data.validation:
            raise UserError("data.validation: a study judges its trials on validation images; hold some back")
        return self

    @model_validator(mode="after")
    def _ends_some_day(self) -> StudyConfig:
        if not self.budget.is_sure_to_end and not isinstance(self.sampler, Grid):
            raise UserError("budget: a study needs an end; give trials, minutes or both")
        return self

    @model_validator(mode="after")
    def _pruner_fits_the_epochs(self) -> StudyConfig:
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
    def _sampler_takes_the_space(self) -> StudyConfig:
        if isinstance(self.sampler, Grid):
            if endless := [name for name, domain in self.domains() if values(domain) is None]:
                raise UserError(*(f"{name}: a grid has no end of it; give a list or a step" for name in endless))
            if (count := size(self.space).recipes) > LARGEST_GRID:
                raise UserError(
                    f"sampler: a grid of {count:,} recipes; narrow the space to {LARGEST_GRID:,} at most, or take "
                    "another sampler"
                )
        if isinstance(self.sampler, Cmaes) and not ranges_of_all(self.space):
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
            tables = _beside(read_toml(path), Path(path).parent)
            chosen = {key: tables.get(key) for key in ("sampler", "pruner")}
            written = copy.deepcopy(tables)
            overridden = _override(tables, overrides or {})
            config = cls.from_dict(overridden)
            config._remarks = tuple(_left_behind(chosen, config))
            config._origins = origins(config._plain(), written, overridden, str(path))
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
            raise UserError(*dict.fromkeys(line for details in error.errors() for line in _lines(details))) from None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user might not expect of how file and overrides came together, in a line each."""
        return self._remarks

    @property
    def origins(self) -> dict[str, str]:
        """Where each value comes from, by key: the study file, the command line or a default; empty without a file."""
        return self._origins.by_key

    def to_toml(self) -> str:
        """The resolved study file: every value spelled out. Loading it gives an equal study."""
        return tomli_w.dumps(self._plain())

    def _plain(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)

    def identity(self) -> dict[str, str]:
        """What must stay the same while a study lives, by key: otherwise its trials could not be compared."""
        identity = {"seed": str(self.seed), "budget.epochs": str(self.budget.epochs)}
        identity |= {f"data.{name}": text_of(value) for name, value in vars(self.data).items()}
        identity["space.common.family"] = ", ".join(self.space.families)
        identity |= {f"space.common.{name}": str(domain) for name, domain in self.space.common.items()}
        for family, domains in self.space.by_family.items():
            identity |= {f"space.{family}.{name.removeprefix('model.')}": str(d) for name, d in domains.items()}
        return identity


# --------------------------------------------------------------------------------------- its errors


def _lines(details: ErrorDetails) -> list[str]:
    """One mistake that pydantic found, as lines of ours."""
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return list(cause.lines)
    location = [str(part) for part in details["loc"]]
    beside = _keys_beside(location)
    if len(location) > 1 and location[0] in ("sampler", "pruner"):
        del location[1]  # the variant's name, which pydantic puts between
    key = ".".join(location) or "study"
    kind, given = details["type"], details["input"]
    if kind == "extra_forbidden":
        return [f"{key}: unknown key; {nearest(location[-1], beside)}"]
    if kind == "missing":
        return [f"{key}: is missing; every study file needs it"]
    if kind == "union_tag_invalid":
        context = details["ctx"]
        names = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
        return [f"{key}: no {key} {context['tag']!r}; {nearest(str(context['tag']), names)}"]
    if kind == "string_pattern_mismatch":
        return [f"{key}: {given!r} is no usable name; use letters, digits, spaces and . _ + @ -"]
    if kind in ("model_type", "model_attributes_type"):
        return [f"{key}: {given!r} is no table; write [{key}] above its keys"]
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return [f"{key}: {message}" if isinstance(given, Mapping) else f"{key}: {given!r} {message}"]


def _keys_beside(location: list[str]) -> list[str]:
    """The keys that a study file knows where an unknown one stood."""
    fields = StudyConfig.model_fields
    if len(location) == 1:
        return list(fields)
    section: Any = fields[location[0]].annotation
    variants = getattr(section, "__args__", (section,))
    chosen = [v for v in variants if len(variants) > 1 and v.model_fields["name"].default == location[1]]
    return [name for variant in chosen or variants for name in getattr(variant, "model_fields", ())]


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file; UserError with file and place where there is none or it is not TOML."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = sorted(path.parent.glob("*.toml")) if path.parent.is_dir() else []
        known = f"; there are {', '.join(map(str, near))}" if near else "; check the path"
        raise UserError(f"{path}: no such file{known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check the path and its rights") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}; mend the file there") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """`name=value` of a `--set`, the value read as TOML and, where it is none, as text.

    Raises:
        UserError: there is no `=` or no name.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--set {text!r}: is no assignment; write --set optimizer.learning_rate=0.01")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _override(tables: dict[str, Any], overrides: Mapping[str, object]) -> dict[str, Any]:
    """The tables with other values; the family first, since it says whose hyperparameters the others are."""
    for name in sorted(overrides, key=lambda name: name != "model.family"):
        value = overrides[name]
        if name.split(".")[0] in StudyConfig.model_fields:
            _assign(tables, name.split("."), value)
        elif name == "model.family":
            _pin_family(tables, value)
        elif name.startswith("model."):
            _pin_model(tables, name, value)
        elif name in shared_hyperparameters():
            _pin(_table(tables, "space", "common"), name, value)
        else:
            raise UserError(f"--set {name}: unknown name; {_override_advice(name)}")
    return tables


def _beside(tables: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tables, with the recipe files that they name found from the study file's folder."""
    start = tables.get("start")
    if isinstance(start, dict) and isinstance(start.get("recipes"), list):
        start["recipes"] = [str(folder / entry) if is_recipe_file(entry) else entry for entry in start["recipes"]]
    return tables


def is_recipe_file(entry: object) -> bool:
    """Whether an entry of `start.recipes` names a file."""
    return isinstance(entry, str) and entry != "champion" and not entry.startswith(("study:", "preset:"))


def _left_behind(chosen: Mapping[str, Any], config: StudyConfig) -> Iterator[str]:
    """Settings of a sampler or pruner that an override has put another one in the place of."""
    for key, table in chosen.items():
        now = getattr(config, key).name
        if isinstance(table, dict) and (before := _chosen_name(key, table)) != now:
            settings = [f"{key}.{name}" for name in table if name != "name"]
            if settings:
                yield f"{', '.join(settings)} belongs to {before!r} and does nothing for {now!r}"


def _chosen_name(key: str, table: Mapping[str, Any]) -> object:
    """Which sampler or pruner a table is about: one without a name is about the default."""
    return table.get("name", StudyConfig.model_fields[key].default.name)


def _override_advice(name: str) -> str:
    """The nearest name, or the nearest table where it is the table's that is misspelt."""
    shared = shared_hyperparameters()
    group, dot, last = name.partition(".")
    parts = {part for other in shared for part in other.split(".")}
    if dot and not {group, last} & parts:
        return nearest(group, StudyConfig.model_fields)
    return nearest(name, [*shared, *StudyConfig.model_fields])


def _assign(tables: dict[str, Any], path: list[str], value: object) -> None:
    *groups, last = path
    given = tables.get(last)
    if path in (["sampler"], ["pruner"]) and isinstance(given, dict) and _chosen_name(last, given) == value:
        return  # its settings stay
    for group in groups:
        inner = tables.get(group)
        if isinstance(inner, str) and group in ("sampler", "pruner"):
            tables[group] = {"name": inner}
        tables = _table(tables, group)
    tables[last] = value


def _table(tables: dict[str, Any], *path: str) -> dict[str, Any]:
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


def _pin_family(tables: dict[str, Any], value: object) -> None:
    """Search these families alone: the tables of the others go."""
    space = _table(tables, "space")
    _table(space, "common")["family"] = value
    kept = value if isinstance(value, list) else [value]
    for other in FAMILIES.keys() & space.keys():
        if other not in kept:
            del space[other]


def _pin_model(tables: dict[str, Any], name: str, value: object) -> None:
    """Pin a hyperparameter in every family of the study that has it."""
    space = _table(tables, "space")
    default = [family for family in space if family in FAMILIES] or ["cnn"]
    searched = _table(tables, "space", "common").get("family", default)
    families = [family_named(family) for family in (searched if isinstance(searched, list) else [searched])]
    having = [family for family in families if name in hyperparameters(family, "model.")]
    if not having:
        known = [key for family in families for key in hyperparameters(family, "model.")]
        raise UserError(f"--set {name}: unknown name; {nearest(name, known)}")
    for family in having:
        _table(tables, "space", family.family)[name.removeprefix("model.")] = value


def _pin(table: dict[str, Any], name: str, value: object) -> None:
    """Pin a dotted name, whatever domain the file gives it and however it spells it."""
    group, _, last = name.rpartition(".")
    if group and isinstance(table.get(group), dict):
        table[group].pop(last, None)
    table[name] = value


# ------------------------------------------------------------------------------------------- recipes


def read_recipe(path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """The recipe of a TOML file, with values overridden by dotted name.

    Raises:
        UserError: one line per mistake, with file, key and remedy.
    """
    try:
        return Recipe.from_dict(read_toml(path)).replace(overrides or {})
    except UserError as error:
        raise UserError(*(line if line.startswith(str(path)) else f"{path}: {line}" for line in error.lines)) from None


def recipe_from_toml(text: str) -> Recipe:
    """The recipe that `recipe_to_toml` wrote."""
    return Recipe.from_dict(tomllib.loads(text))


def recipe_to_toml(recipe: Recipe, *, brief: bool = False) -> str:
    """A recipe as TOML, every value spelled out or, in brief, those that are not defaults; reading it gives it back."""
    tables = recipe.to_dict()
    return tomli_w.dumps(_differing(tables, Recipe(model=type(recipe.model)()).to_dict()) if brief else tables)


def _differing(tables: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """What of nested tables is not as usual; a family is always named."""
    found = {}
    for name, value in tables.items():
        if isinstance(value, Mapping):
            if inner := _differing(value, usual[name]):
                found[name] = inner
        elif value != usual[name] or name == "family":
            found[name] = value
    return found
