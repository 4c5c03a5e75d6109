"""Families are known, described and listed without torch; only their networks need it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from fmnist_search.errors import UserError
from fmnist_search.recipe import families
from fmnist_search.recipe.families import FAMILIES


def run_without_torch(program: str) -> str:
    """Return what a fresh interpreter prints in which torch, torchvision and numpy cannot be imported."""
    blocked = 'import sys; sys.modules.update(dict.fromkeys(("torch", "torchvision", "numpy")))\n'
    done = subprocess.run(
        [sys.executable, "-c", blocked + textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Each line is the first statement of a process: no other import has loaded the families before it.
@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("from fmnist_search.recipe import Recipe; print(Recipe().label)", "cnn 32-64-128"),
        ("from fmnist_search import Recipe; print(Recipe().replace({'model.family': 'vgg'}).label)", "vgg 64-128-256"),
        ("from fmnist_search.recipe import families; print(families.get('mlp').family)", "mlp"),
        ("from fmnist_search.models.presets import get_preset; print(get_preset('vgg').parameters)", "1147722"),
        ("from fmnist_search.models import PRESETS; print(PRESETS['lenet'].mult_adds)", "5435914"),
        ("from fmnist_search.models.vgg import Vgg; print(Vgg().widths)", "(64, 128, 256)"),
    ],
)
def test_a_first_statement_needs_no_torch(program: str, printed: str) -> None:
    assert run_without_torch(program).strip() == printed


def test_every_family_is_described_without_torch() -> None:
    program = """
        from fmnist_search.recipe.families import FAMILIES
        from fmnist_search.recipe.recipe import recipe_hyperparameters
        for name, family in FAMILIES.items():
            assert family().widths is not None
            assert all(spec.expected() for spec in recipe_hyperparameters(family).values())
            print(name)
    """
    assert run_without_torch(program).split() == list(FAMILIES)


def test_the_registry_finds_families_by_name() -> None:
    assert {"cnn", "mlp"} <= FAMILIES.keys()
    assert len(FAMILIES) == len(list(FAMILIES))
    assert all(families.get(name) is family and family.family == name for name, family in FAMILIES.items())
    assert "cnnn" not in FAMILIES


@pytest.mark.parametrize("name", ["cnnn", 7, None, ["cnn"]])
def test_an_unknown_family_is_an_error_that_names_a_known_one(name: object) -> None:
    with pytest.raises(UserError, match=r"^model\.family: no family .*; (did you mean|known)"):
        families.get(name)
