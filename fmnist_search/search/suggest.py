"""Recipes from Optuna's trials: domains become suggestions, and recipes become Optuna's parameters."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fmnist_search.config.conditional_space import (
    FAMILY_NAME,
    constant_values,
    enumerate_points,
    family_domain,
    qualified_name,
    searchable_values,
    varying_names,
)
from fmnist_search.config.domain import Choice, Domain, Fixed, Range, bounds, is_ordered
from fmnist_search.config.space import Space
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.families import FAMILIES, Architecture
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe, is_active, recipe_hyperparameters

# Optuna logs each study that it creates, also those of a preview; it sets its level when it is imported.
optuna.logging.set_verbosity(optuna.logging.WARNING)


def base_recipe(config: StudyConfig, precision: str) -> Recipe:
    """Return the recipe that all trials of a study share, before any hyperparameter is sampled."""
    data: dict[str, object] = {f"data.{name}": value for name, value in vars(config.data).items()}
    batch_size = min(Recipe().batch_size, config.data.training_count)
    return Recipe().replace({**data, "epochs": config.budget.epochs, "precision": precision, "batch_size": batch_size})


def trial_seed(study_seed: int, number: int) -> int:
    """Return the seed of a trial, from 0 to 2**31 - 1. Stored studies rely on it, so it must not change."""
    digest = hashlib.sha256(f"{study_seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


# ------------------------------------------------------------------------------------ sampling


def suggest_recipe(trial: optuna.trial.BaseTrial, space: Space, base: Recipe, seed: int) -> Recipe:
    """Sample a recipe. A conditional hyperparameter is suggested only if the recipe has it."""
    family = str(_suggest(trial, FAMILY_NAME, family_domain(space)))
    domains = space.domains(family)
    start = base.replace({FAMILY_NAME: family})
    values = start.to_flat_dict()
    for name, spec in recipe_hyperparameters(FAMILIES[family]).items():
        fixed = isinstance(domains.get(name), Fixed)
        if name in domains and (fixed or is_active(name, FAMILIES[family], values)):
            values[name] = spec.parse(_suggest(trial, qualified_name(space, family, name), domains[name]))
    return start.replace({**values, "seed": seed})


def _suggest(trial: optuna.trial.BaseTrial, name: str, domain: Domain) -> Value:
    match domain:
        case Fixed(value):
            return value
        case Choice(values):
            return cast(Value, trial.suggest_categorical(name, values))
        case Range(low, high, log, step) if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, log=log, step=int(step or 1))
    return trial.suggest_float(name, domain.low, domain.high, log=domain.log, step=domain.step)


def sample_with_fixed(space: Space, base: Recipe, given: Mapping[str, Value], seed: int) -> Recipe:
    """Return a recipe with the given values, even if they lie outside the space; `seed` samples all others."""
    family = _select_family(space, given)
    fixed = {name: Fixed(value) for name, value in searchable_values(given).items()}
    common = {name: domain for name, domain in fixed.items() if not name.startswith("model.")}
    own = {name: domain for name, domain in fixed.items() if name.startswith("model.")}
    fixed_space = Space((family,), {**space.common, **common}, {family: {**space.by_family.get(family, {}), **own}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return suggest_recipe(study.ask(), fixed_space, base, seed)


def displayed_names(config: StudyConfig, recipes: Iterable[Recipe]) -> list[str]:
    """Return the dotted names of the hyperparameters that tell these recipes of a study apart.

    First come those that its space lets vary, then those of which a recipe has a value that the space does not have, as
    a start recipe may; both in the order of a recipe.
    """
    constants: dict[str, dict[str, Value]] = {}  # by family
    outside: set[str] = set()
    for recipe in recipes:
        family, own = recipe.model.family, recipe.to_flat_dict()
        if family not in constants:
            constants[family] = _constants_of_family(config, family)
        outside |= {name for name, value in constants[family].items() if own[name] != value}
        if family not in config.space.families:
            outside.add(FAMILY_NAME)
    names = (name for family in constants for name in (FAMILY_NAME, *recipe_hyperparameters(FAMILIES[family])))
    return list(dict.fromkeys([*varying_names(config.space), *(name for name in names if name in outside)]))


def _constants_of_family(config: StudyConfig, family: str) -> dict[str, Value]:
    space = dataclasses.replace(config.space, families=(family,))
    return searchable_values(constant_values(space, base_recipe(config, "float32")))


def to_distribution(domain: Domain) -> BaseDistribution:
    """Return Optuna's distribution of a domain."""
    match domain:
        case Fixed() | Choice():
            return CategoricalDistribution(bounds(domain))
        case Range(low, high, log, step) if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log, step=int(step or 1))
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)


# --------------------------------------------------------------------------------- parameters


def grid_points(space: Space) -> Iterator[dict[str, Value]]:
    """Yield every recipe of a finite space as Optuna's parameters."""
    for family in space.families:
        head: dict[str, Value] = {FAMILY_NAME: family} if len(space.families) > 1 else {}
        for point in enumerate_points(space, family):
            yield head | {qualified_name(space, family, name): value for name, value in point.items()}


def smallest_points(space: Space) -> Iterator[dict[str, Value]]:
    """Yield, for each family, the smallest number of each domain as Optuna's parameters; of other choices the first."""
    for family in space.families:
        point: dict[str, Value] = {FAMILY_NAME: family}
        for name, domain in space.domains(family).items():
            values = bounds(domain)
            point[qualified_name(space, family, name)] = min(values) if is_ordered(domain) else values[0]
        yield point


def start_params(config: StudyConfig, source: str, given: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
    """Return Optuna's parameters of a start recipe, and a line for each value that lies outside the space.

    Raises:
        UserError: if the values do not make a recipe, or if they lie outside the space and the study refuses that.
    """
    try:
        params, outside = to_optuna_params(config.space, base_recipe(config, "float32"), given)
    except UserError as error:
        raise UserError(*(f"start.recipes: {source}: {line}" for line in error.lines)) from None
    if outside and config.start.outside == "refuse":
        remedy = "widen the space, or allow it with start.outside = 'try'"
        raise UserError(*(f"start.recipes: {source}: {reason}; {remedy}" for reason in outside))
    return params, outside


def start_network(config: StudyConfig, given: Mapping[str, Value]) -> Architecture | None:
    """Return the network of a start recipe whose values make a recipe; None if the sampler chooses a part of it."""
    space, own = config.space, searchable_values(given)
    family = _select_family(space, given)
    if len(space.families) > 1 and not any(name.startswith("model.") for name in given):
        return None
    domains = space.domains(family)
    fixed = {name: domain.value for name, domain in domains.items() if isinstance(domain, Fixed)}
    recipe = base_recipe(config, "float32").replace({FAMILY_NAME: family, **fixed, **own})
    values = recipe.to_flat_dict()
    sampled = [
        name
        for name in domains
        if name.startswith("model.") and name not in (own | fixed) and is_active(name, FAMILIES[family], values)
    ]
    return None if sampled else recipe.model


def to_optuna_params(space: Space, base: Recipe, given: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
    """Return Optuna's parameters for the given values, and a line for each value that lies outside the space.

    `given` holds values by dotted name. Those that a study sets for all its trials (images, epochs, seed) are ignored.

    Raises:
        UserError: if the values do not make a recipe.
    """
    family = _select_family(space, given)
    own = searchable_values(given)
    domains = space.domains(family)
    fixed = {name: domain.value for name, domain in domains.items() if isinstance(domain, Fixed)}
    recipe = base.replace({FAMILY_NAME: family, **fixed, **own})
    if family not in space.families:
        return {}, [f"{FAMILY_NAME} = {family}, and the space has {', '.join(space.families)}"]
    wanted = recipe.to_flat_dict()
    sampled = {name: value for name, value in own.items() if not isinstance(domains.get(name, Fixed(0)), Fixed)}
    reachable = base.replace({FAMILY_NAME: family, **fixed, **sampled}).to_flat_dict()
    names_a_family = any(name.startswith("model.") for name in given)
    params: dict[str, Value] = {FAMILY_NAME: family} if names_a_family and len(space.families) > 1 else {}
    outside = []
    for name, spec in recipe_hyperparameters(FAMILIES[family]).items():
        if name not in own or not is_active(name, FAMILIES[family], wanted):
            continue
        domain = domains[name] if name in sampled else Fixed(reachable[name])
        if domain.contains(wanted[name]):
            value = wanted[name]
        elif domain.contains(spec.default) and recipe.replace({name: spec.default}) == recipe:
            value = spec.default  # a space may hold 0 for the default width of a block; a recipe holds that width
        else:
            outside.append(f"{name} = {format_value(wanted[name])}, and the space has {domain}")
            continue
        if name in sampled:
            params[qualified_name(space, family, name)] = value
    return params, outside


def _select_family(space: Space, given: Mapping[str, Value]) -> str:
    """Return the given family, or the first family of the space that has all given hyperparameters."""
    if FAMILY_NAME in given:
        return str(given[FAMILY_NAME])
    own = {name for name in given if name.startswith("model.")}
    suitable = (family for family in space.families if own <= recipe_hyperparameters(FAMILIES[family]).keys())
    return next(suitable, space.families[0])
