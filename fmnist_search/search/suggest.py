"""Domains of a study file become Optuna's suggestions, and suggestions become a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fmnist_search.config.conditional_space import conditional_hyperparameters, enumerate_points
from fmnist_search.config.space import NOT_SEARCHABLE, Choice, Domain, Fixed, Range, Space, bounds
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe, is_active, recipe_hyperparameters

FAMILY_NAME = "model.family"


def base_recipe(config: StudyConfig, precision: str) -> Recipe:
    """What every trial of a study has in common, before its domains are drawn from."""
    data: dict[str, object] = {f"data.{name}": value for name, value in vars(config.data).items()}
    batch_size = min(Recipe().batch_size, config.data.training_count)
    return Recipe().replace({**data, "epochs": config.budget.epochs, "precision": precision, "batch_size": batch_size})


def suggest_recipe(trial: optuna.Trial, space: Space, base: Recipe, seed: int) -> Recipe:
    """Draw a recipe. What depends on another value (the width of a third block) is asked for only where it matters."""
    family = str(_suggest(trial, FAMILY_NAME, _family_domain(space.families)))
    domains = space.domains(family)
    start = base.replace({FAMILY_NAME: family})
    values = start.to_flat_dict()
    for name, spec in recipe_hyperparameters(FAMILIES[family]).items():
        pinned = isinstance(domains.get(name), Fixed)
        if name in domains and (pinned or is_active(name, FAMILIES[family], values)):
            values[name] = spec.parse(_suggest(trial, optuna_param_name(space, family, name), domains[name]))
    return start.replace({**values, "seed": seed})


def _family_domain(families: tuple[str, ...]) -> Domain:
    return Choice(families) if len(families) > 1 else Fixed(families[0])


def optuna_param_name(space: Space, family: str, name: str) -> str:
    """A hyperparameter's name in Optuna: its dotted one, with the family's where several families may share it."""
    if len(space.families) > 1 and name.startswith("model."):
        return f"{family}.{name.removeprefix('model.')}"
    return name


def distribution_groups(space: Space) -> list[dict[str, BaseDistribution]]:
    """Optuna's distributions of a space, by Optuna's names; each group holds what is there in the same recipes.

    The first group is what all recipes have. Domains of a single value are left out.
    """
    groups: dict[object, dict[str, BaseDistribution]] = {(): {}}
    if len(space.families) > 1:
        groups[()][FAMILY_NAME] = CategoricalDistribution(space.families)
    for family in space.families:
        for variable in conditional_hyperparameters(space, family):
            own = len(space.families) > 1 and variable.name.startswith("model.")
            gates = tuple(sorted((gate, wanted) for gate, wanted in variable.conditions.items()))
            group = groups.setdefault((family, *gates) if own else gates, {})
            group[optuna_param_name(space, family, variable.name)] = _to_distribution(variable.domain)
    return [{name: d for name, d in group.items() if not d.single()} for group in groups.values()]


def _to_distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case Fixed(value):
            return CategoricalDistribution((value,))
        case Choice(values):
            return CategoricalDistribution(values)
        case Range(low, high, log, step) if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log, step=int(step or 1))
        case Range(low, high, log, step):
            return FloatDistribution(low, high, log=log, step=step)


def grid_points(space: Space) -> Iterator[dict[str, Value]]:
    """Every recipe of a space as Optuna's parameters; its domains must all have an end."""
    for family in space.families:
        head: dict[str, Value] = {FAMILY_NAME: family} if len(space.families) > 1 else {}
        for point in enumerate_points(space, family):
            yield head | {optuna_param_name(space, family, name): value for name, value in point.items()}


def searchable_values(given: Mapping[str, Value]) -> dict[str, Value]:
    """The values, by dotted name, that a study may search: not those that it decides for all its trials."""
    return {name: value for name, value in given.items() if name not in NOT_SEARCHABLE and name != "schema_version"}


def to_optuna_params(space: Space, base: Recipe, given: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
    """Optuna's parameters that give these values, by dotted name, and what of them the space does not hold.

    Values that a study decides for all its trials (images, epochs, seed) are none of a space's.

    Raises:
        UserError: the values are no recipe's.
    """
    family = _select_family(space, given)
    own = searchable_values(given)
    domains = space.domains(family)
    pins = {name: domain.value for name, domain in domains.items() if isinstance(domain, Fixed)}
    whole = base.replace({FAMILY_NAME: family, **pins, **own})
    if family not in space.families:
        return {}, [f"{FAMILY_NAME} = {family}, and the space has {', '.join(space.families)}"]
    wanted = whole.to_flat_dict()
    drawn = {name: value for name, value in own.items() if not isinstance(domains.get(name, Fixed(0)), Fixed)}
    reached = base.replace({FAMILY_NAME: family, **pins, **drawn}).to_flat_dict()
    names_a_family = any(name.startswith("model.") for name in given)
    params: dict[str, Value] = {FAMILY_NAME: family} if names_a_family and len(space.families) > 1 else {}
    outside = []
    for name, spec in recipe_hyperparameters(FAMILIES[family]).items():
        if name not in own or not is_active(name, FAMILIES[family], wanted):
            continue
        domain = domains[name] if name in drawn else Fixed(reached[name])
        if domain.contains(wanted[name]):
            chosen = wanted[name]
        elif domain.contains(spec.default) and whole.replace({name: spec.default}) == whole:
            chosen = spec.default  # 0 stands in a space for the default width of a block, and no recipe says 0
        else:
            outside.append(f"{name} = {format_value(wanted[name])}, and the space has {domain}")
            continue
        if name in drawn:
            params[optuna_param_name(space, family, name)] = chosen
    return params, outside


def sample_with_fixed(space: Space, base: Recipe, given: Mapping[str, Value], seed: int) -> Recipe:
    """A recipe with these values, whether the space holds them or not; what is not given is drawn by the seed."""
    family = _select_family(space, given)
    pins = {name: Fixed(value) for name, value in searchable_values(given).items()}
    common = {name: pin for name, pin in pins.items() if not name.startswith("model.")}
    own = {name: pin for name, pin in pins.items() if name.startswith("model.")}
    around = Space((family,), {**space.common, **common}, {family: {**space.by_family.get(family, {}), **own}})
    scratch = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return suggest_recipe(scratch.ask(), around, base, seed)


def _select_family(space: Space, given: Mapping[str, Value]) -> str:
    """The family that is given, or the first of the space that has every hyperparameter that is."""
    if FAMILY_NAME in given:
        return str(given[FAMILY_NAME])
    own = {name for name in given if name.startswith("model.")}
    having = (family for family in space.families if own <= recipe_hyperparameters(FAMILIES[family]).keys())
    return next(having, space.families[0])


def varying_names(space: Space) -> list[str]:
    """Dotted names of everything that may differ between trials, in the order of a recipe."""
    names = [FAMILY_NAME] if len(space.families) > 1 else []
    for family in space.families:
        names += [name for name in recipe_hyperparameters(FAMILIES[family]) if _varies(name, space, family)]
    return list(dict.fromkeys(names))


def constant_values(space: Space, base: Recipe) -> dict[str, Value]:
    """Dotted names and values of everything that is the same in all trials of a study."""
    varying = {*varying_names(space), "seed"}
    pins = {n: bounds(d)[0] for n, d in space.domains(space.families[0]).items() if len(bounds(d)) == 1}
    flat = base.replace({FAMILY_NAME: space.families[0], **pins}).to_flat_dict()
    if len(space.families) > 1:
        flat = {name: value for name, value in flat.items() if not name.startswith("model.")}
    return {name: value for name, value in flat.items() if name not in varying}


def _varies(name: str, space: Space, family: str) -> bool:
    """Whether trials differ in a hyperparameter: it is drawn, or it belongs to a block that not all of them have."""
    domains = space.domains(family)
    if name in domains and not isinstance(domains[name], Fixed):
        return True
    if not name.startswith("model."):
        return False
    gates = {n: bounds(d) for n, d in domains.items() if n.startswith("model.")}
    first = {FAMILY_NAME: family, **{gate: values[0] for gate, values in gates.items()}}
    values = {
        Recipe().replace({**first, gate: end}).to_flat_dict()[name] for gate, ends in gates.items() for end in ends
    }
    return len(values) > 1


def trial_seed(study_seed: int, number: int) -> int:
    """A seed for each trial of a study, so that neighbours share neither weights nor order."""
    digest = hashlib.sha256(f"{study_seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Value:
    match domain:
        case Fixed(value):
            return value
        case Choice(values):
            return cast(Value, trial.suggest_categorical(name, values))
        case Range(low, high, log, step) if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, log=log, step=int(step or 1))
        case Range(low, high, log, step):
            return trial.suggest_float(name, low, high, log=log, step=step)
