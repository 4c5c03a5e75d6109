"""Domains of a study file become Optuna's suggestions, and suggestions become a recipe."""

from __future__ import annotations

import hashlib
from typing import cast

import optuna

from fmnist_search.config import Choice, Domain, Pin, Range, Space, StudyConfig
from fmnist_search.recipe import FAMILIES, Recipe, Value, hyperparameters, in_use, known_hyperparameters

FAMILY = "model.family"


def base_recipe(config: StudyConfig, precision: str) -> Recipe:
    """What every trial of a study has in common, before its domains are drawn from."""
    shared = {f"data.{name}": value for name, value in vars(config.data).items()}
    return Recipe().replace({**shared, "epochs": config.budget.epochs, "precision": precision})


def sample(trial: optuna.Trial, space: Space, base: Recipe, seed: int) -> Recipe:
    """Draw a recipe. What depends on another value (the width of a third block) is asked for only where it matters."""
    family = str(_draw(trial, FAMILY, _one_of(space.families)))
    domains = space.domains(family)
    start = base.replace({FAMILY: family})
    values = start.flat()
    for name, spec in known_hyperparameters(FAMILIES[family]).items():
        if name in domains and in_use(name, FAMILIES[family], values):
            values[name] = spec.parse(_draw(trial, optuna_name(space, family, name), domains[name]))
    return start.replace({**values, "seed": seed})


def _one_of(families: tuple[str, ...]) -> Domain:
    return Choice(families) if len(families) > 1 else Pin(families[0])


def optuna_name(space: Space, family: str, name: str) -> str:
    """A hyperparameter's name in Optuna: its dotted one, with the family's where several families may share it."""
    if len(space.families) > 1 and name.startswith("model."):
        return f"{family}.{name.removeprefix('model.')}"
    return name


def searched(space: Space) -> list[str]:
    """Dotted names of everything that may differ between trials, in the order of a recipe."""
    varying = {name for family in space.families for name, d in space.domains(family).items() if not isinstance(d, Pin)}
    names = [FAMILY] if len(space.families) > 1 else []
    for family in space.families:
        names += [name for name in known_hyperparameters(FAMILIES[family]) if name in varying and name not in names]
    return names


def constants(space: Space, base: Recipe) -> dict[str, Value]:
    """Dotted names and values of everything that is the same in all trials of a study."""
    values = {name: value for name, value in base.flat().items() if not name.startswith("model.") and name != "seed"}
    values |= {name: domain.value for name, domain in space.common.items() if isinstance(domain, Pin)}
    if len(space.families) == 1:
        (family,) = space.families
        defaults = {name: spec.default for name, spec in hyperparameters(FAMILIES[family], "model.").items()}
        own = {name: d.value for name, d in space.by_family.get(family, {}).items() if isinstance(d, Pin)}
        values |= {FAMILY: family, **defaults, **own}
    return {name: value for name, value in values.items() if name not in searched(space)}


def trial_seed(study_seed: int, number: int) -> int:
    """A seed for each trial of a study, so that neighbours share neither weights nor order."""
    digest = hashlib.sha256(f"{study_seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _draw(trial: optuna.Trial, name: str, domain: Domain) -> Value:
    match domain:
        case Pin(value):
            return value
        case Choice(values):
            return cast(Value, trial.suggest_categorical(name, values))
        case Range(low, high, log, step) if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, log=log, step=int(step or 1))
        case Range(low, high, log, step):
            return trial.suggest_float(name, low, high, log=log, step=step)
