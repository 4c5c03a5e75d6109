"""Hypothesis strategies for recipes, which follow the limits of the hyperparameters."""

from __future__ import annotations

from hypothesis import reject
from hypothesis import strategies as st

from fmnist_search.errors import UserError
from fmnist_search.models.classifier import check_size
from fmnist_search.recipe.datasets import TRAINING_SET_SIZE
from fmnist_search.recipe.families import FAMILIES, Architecture
from fmnist_search.recipe.hyperparameters import Hyperparameter, Value, hyperparameters
from fmnist_search.recipe.recipe import Recipe, recipe_hyperparameters


def hyperparameter_values(spec: Hyperparameter, largest: int | None = None) -> st.SearchStrategy[Value]:
    """Return a strategy for the values of one hyperparameter; `largest` limits integers, to keep networks small."""
    if spec.choices is not None:
        return st.sampled_from((spec.default, *spec.choices))
    if spec.kind is bool:
        return st.booleans()
    if spec.kind is int:
        low = int(spec.low or 0)
        high = int(spec.high) if spec.high is not None else 2**31 - 1
        within = st.integers(low, high if largest is None else max(low, min(high, largest)))
        small_enough = largest is None or int(spec.default) <= largest
        return within | st.just(spec.default) if small_enough else within
    assert spec.kind is float, f"{spec.name}: a {spec.kind.__name__} without choices has no strategy"
    low, exclusive = (spec.above, True) if spec.above is not None else (spec.low, False)
    return st.floats(low, spec.high, exclude_min=exclusive, allow_nan=False, allow_infinity=False)


@st.composite
def architectures(draw: st.DrawFn, family: type[Architecture], largest: int | None = None) -> Architecture:
    """Draw hyperparameters of one family that make a network."""
    specs = hyperparameters(family)
    chosen = draw(
        st.fixed_dictionaries({}, optional={name: hyperparameter_values(spec, largest) for name, spec in specs.items()})
    )
    if largest is not None:
        # A default may be larger than `largest`, so every integer is drawn.
        chosen = {
            name: draw(hyperparameter_values(spec, largest)) if spec.kind is int else chosen.get(name, spec.default)
            for name, spec in specs.items()
        }
    try:
        architecture = family(**chosen)
        check_size(architecture)
    except UserError:
        reject()
    return architecture


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Draw a recipe of any family with any of its hyperparameters changed."""
    family = FAMILIES[draw(st.sampled_from(sorted(FAMILIES)))]
    known = recipe_hyperparameters(family)
    changes: dict[str, object] = draw(
        st.fixed_dictionaries({}, optional={name: hyperparameter_values(spec) for name, spec in known.items()})
    )
    # These three limit each other; drawn independently, most combinations would be invalid.
    validation = draw(st.integers(0, TRAINING_SET_SIZE - 100))
    training = draw(st.just(0) | st.integers(100, TRAINING_SET_SIZE - validation))
    changes |= {
        "model.family": family.family,
        "data.validation": validation,
        "data.train_images": training,
        "batch_size": draw(st.integers(2, training or TRAINING_SET_SIZE - validation)),
    }
    try:
        return Recipe().replace(changes)
    except UserError:
        reject()
