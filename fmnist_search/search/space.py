"""Domains of a study file become Optuna's suggestions, and suggestions become a recipe."""

from __future__ import annotations

import hashlib
from typing import cast

import optuna

from fmnist_search.config import StudyConfig
from fmnist_search.domains import Choice, Domain, Pin, Range, Space, ends
from fmnist_search.hyperparameters import Value
from fmnist_search.recipe import FAMILIES, Recipe, in_use, known_hyperparameters

FAMILY = "model.family"


def base_recipe(config: StudyConfig, precision: str) -> Recipe:
    """What every trial of a study has in common, before its domains are drawn from."""
    data: dict[str, object] = {f"data.{name}": value for name, value in vars(config.data).items()}
    batch_size = min(Recipe().batch_size, config.data.training_count)
    return Recipe().replace({**data, "epochs": config.budget.epochs, "precision": precision, "batch_size": batch_size})


def sample(trial: optuna.Trial, space: Space, base: Recipe, seed: int) -> Recipe:
    """Draw a recipe. What depends on another value (the width of a third block) is asked for only where it matters."""
    family = str(_draw(trial, FAMILY, _one_of(space.families)))
    domains = space.domains(family)
    start = base.replace({FAMILY: family})
    values = start.flat()
    for name, spec in known_hyperparameters(FAMILIES[family]).items():
        pinned = isinstance(domains.get(name), Pin)
        if name in domains and (pinned or in_use(name, FAMILIES[family], values)):
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
    names = [FAMILY] if len(space.families) > 1 else []
    for family in space.families:
        names += [name for name in known_hyperparameters(FAMILIES[family]) if _varies(name, space, family)]
    return list(dict.fromkeys(names))


def constants(space: Space, base: Recipe) -> dict[str, Value]:
    """Dotted names and values of everything that is the same in all trials of a study."""
    varying = {*searched(space), "seed"}
    pins = {n: d.value for n, d in space.domains(space.families[0]).items() if isinstance(d, Pin)}
    flat = base.replace({FAMILY: space.families[0], **pins}).flat()
    if len(space.families) > 1:
        flat = {name: value for name, value in flat.items() if not name.startswith("model.")}
    return {name: value for name, value in flat.items() if name not in varying}


def _varies(name: str, space: Space, family: str) -> bool:
    """Whether trials differ in a hyperparameter: it is drawn, or it belongs to a block that not all of them have."""
    domains = space.domains(family)
    if name in domains and not isinstance(domains[name], Pin):
        return True
    if not name.startswith("model."):
        return False
    pins = {other: domain.value for other, domain in domains.items() if isinstance(domain, Pin)}
    start = Recipe().replace({FAMILY: family, "batch_size": 2, **pins})
    gates = {n: ends(d) for n, d in domains.items() if n.startswith("model.") and not isinstance(d, Pin)}
    values = {start.replace({gate: end}).flat()[name] for gate, ends in gates.items() for end in ends}
    return len(values) > 1


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
