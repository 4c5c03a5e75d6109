"""What is trained for a table of curves: a plan has stages, and a stage may depend on the curves of those before it.

The order of the trainings depends only on the seed of the study and on these curves, so that a recording which was
interrupted is continued by the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import optuna

from benchmarks.curves.table import CurveTable
from fmnist_search.config.conditional_space import conditional_hyperparameters
from fmnist_search.config.domain import Choice, Domain, Range
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.search.suggest import base_recipe, suggest_recipe, to_distribution, trial_seed

REPEATABLE_RECIPES = 85
"""Number of recipes of which some are trained again in the plan "annealed"."""

ANNEALED_EVERY = 3
"""Every third of them is also trained with an annealed schedule and another seed."""

REPEATED_EVERY, REPEATS = 10, 2
"""Every tenth of them is trained twice more with other seeds, which measures the noise."""

BEST_RECIPES, LEARNING_RATE_FACTORS = 3, (1.0, 2.0, 4.0)
"""The best recipes are annealed from these multiples of their learning rate."""

NEIGHBOURED_RECIPES, NEIGHBOURS_OF_EACH = 10, 6
"""The best recipes in the plan "neighbours" have so many recipes close to them each."""

RATE_STEP = 0.15
"""Standard deviation of the change of a range in a neighbour, as a share of the range."""

BEST_REPEATED, GOOD_REPEATED = 15, 15
"""The best recipes, and as many of the others in the better half, are trained twice more with other seeds."""

SMALL_RECIPES, SMALL_IMAGES = 40, 6_000
"""The first recipes are also trained on so few images."""


@dataclass(frozen=True)
class PlannedTraining:
    """One training of a plan; `train_images` if they are fewer than those of the study."""

    recipe_number: int
    kind: str
    recipe: Recipe
    train_images: int | None = None


Stage = Callable[[StudyConfig, CurveTable, int], Iterator[PlannedTraining]]
"""Yields trainings for a study, its curves so far, and a number of random recipes."""


def sample_recipes(config: StudyConfig, precision: str, count: int) -> list[Recipe]:
    """Return the first random recipes of a study's space."""
    base = base_recipe(config, precision)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.seed))
    return [suggest_recipe(study.ask(), config.space, base, trial_seed(config.seed, number)) for number in range(count)]


# ------------------------------------------------------------------------------------ the plan "annealed"


def _recipes_annealed_and_repeated(config: StudyConfig, table: CurveTable, count: int) -> Iterator[PlannedTraining]:
    for number, recipe in enumerate(sample_recipes(config, table.header.precision, count)):
        yield PlannedTraining(number, "search", recipe)
        if number >= REPEATABLE_RECIPES:
            continue
        if number % ANNEALED_EVERY == 0:
            seed = trial_seed(config.seed + 1, number)
            yield PlannedTraining(number, "annealed", _annealed_recipe(recipe, 1.0, seed))
        if number % REPEATED_EVERY == 0:
            yield from _repeats(config, number, recipe)


def _repeats(config: StudyConfig, number: int, recipe: Recipe) -> Iterator[PlannedTraining]:
    for repeat in range(REPEATS):
        seed = trial_seed(config.seed + 2 + repeat, number)
        yield PlannedTraining(number, f"repeat {repeat + 1}", recipe.replace({"seed": seed}))


def _scaled_rates(config: StudyConfig, table: CurveTable, count: int) -> Iterator[PlannedTraining]:
    recipes = sample_recipes(config, table.header.precision, count)
    for number in _best_numbers(table, recipes)[:BEST_RECIPES]:
        for factor in LEARNING_RATE_FACTORS:
            recipe = _annealed_recipe(recipes[number], factor, trial_seed(config.seed + 100, number))
            yield PlannedTraining(number, f"annealed x{factor:g}", recipe)


def _annealed_recipe(recipe: Recipe, factor: float, seed: int) -> Recipe:
    rate = factor * recipe.optimizer.learning_rate
    return recipe.replace({"schedule.name": "one-cycle", "optimizer.learning_rate": rate, "seed": seed})


# ---------------------------------------------------------------------------------- the plan "neighbours"


def _recipes(config: StudyConfig, table: CurveTable, count: int) -> Iterator[PlannedTraining]:
    for number, recipe in enumerate(sample_recipes(config, table.header.precision, count)):
        yield PlannedTraining(number, "search", recipe)


def _neighbours(config: StudyConfig, table: CurveTable, count: int) -> Iterator[PlannedTraining]:
    recipes = sample_recipes(config, table.header.precision, count)
    base = base_recipe(config, table.header.precision)
    for place, best in enumerate(_best_numbers(table, recipes)[:NEIGHBOURED_RECIPES]):
        for index in range(NEIGHBOURS_OF_EACH):
            number = count + place * NEIGHBOURS_OF_EACH + index
            yield PlannedTraining(number, "neighbour", _neighbour(recipes[best], base, config, number))


def _neighbour(recipe: Recipe, base: Recipe, config: StudyConfig, number: int) -> Recipe:
    """Return a recipe that differs from another in one hyperparameter or two, and in those that they activate."""
    random = np.random.default_rng([config.seed, number])
    varying = {each.name: each for each in conditional_hyperparameters(config.space, recipe.model.family)}
    values = recipe.to_flat_dict()
    own = {name: values[name] for name, each in varying.items() if each.is_active(values)}
    changed = random.choice(sorted(own), size=int(random.integers(1, 3)), replace=False)
    moved = {str(name): _moved(own[str(name)], varying[str(name)].domain, random) for name in changed}
    sampler = optuna.samplers.RandomSampler(seed=number)
    drawn = optuna.create_study(sampler=sampler).ask({n: to_distribution(each.domain) for n, each in varying.items()})
    trial = optuna.trial.FixedTrial({**drawn.params, **own, **moved}, number)
    return suggest_recipe(trial, config.space, base, trial_seed(config.seed, number))


def _moved(value: Value, domain: Domain, random: np.random.Generator) -> Value:
    """Return a value of a domain that is close to another one, and differs from it."""
    if isinstance(domain, Choice):
        place = domain.values.index(value)
        places = [near for near in (place - 1, place + 1) if 0 <= near < len(domain.values)]
        return domain.values[int(random.choice(places))]
    assert isinstance(domain, Range)
    assert domain.log
    assert not isinstance(value, str)
    factor = math.exp(random.normal(0, RATE_STEP) * math.log(domain.high / domain.low))
    return float(min(max(value * factor, domain.low), domain.high))


def _repeated_recipes(config: StudyConfig, table: CurveTable, count: int) -> Iterator[PlannedTraining]:
    recipes = sample_recipes(config, table.header.precision, count)
    numbers = _best_numbers(table, recipes)
    others = numbers[BEST_REPEATED : max(len(numbers) // 2, BEST_REPEATED)]
    spread = np.unique(np.linspace(0, len(others) - 1, GOOD_REPEATED).astype(int)) if others else ()
    for number in [*numbers[:BEST_REPEATED], *(others[place] for place in spread)]:
        yield from _repeats(config, number, recipes[number])


def _recipes_on_few_images(config: StudyConfig, table: CurveTable, count: int) -> Iterator[PlannedTraining]:
    for number, recipe in enumerate(sample_recipes(config, table.header.precision, min(count, SMALL_RECIPES))):
        yield PlannedTraining(number, "small", recipe, SMALL_IMAGES)


def _best_numbers(table: CurveTable, recipes: list[Recipe]) -> list[int]:
    """Return the numbers of the random recipes whose trainings have not failed, the best first."""
    found = table.curves_of_kind("search")
    numbers = [number for number in range(len(recipes)) if number in found and not found[number].failed]
    return sorted(numbers, key=lambda number: -found[number].val_accuracy[-1])


PLANS: Mapping[str, tuple[Stage, ...]] = {
    "annealed": (_recipes_annealed_and_repeated, _scaled_rates),
    # The noise is measured first; neighbours add recipes to the table, so that searches are to be replayed again.
    "neighbours": (_recipes, _repeated_recipes, _recipes_on_few_images, _neighbours),
}
