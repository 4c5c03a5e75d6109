"""Trials train without importing torch's compiler, which stays usable."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch
from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision
from fmnist_search.training.compiler import defer_compiler_import
from fmnist_search.training.trial import run_trial

generator = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8, generator=generator)
labelled = LabelledImages(pixels, torch.arange(64) % 10)
images = Images(labelled, labelled, 73.0, 90.0, "", "", tuple("abcdefghij"))

def weights(name):
    recipe = Recipe().replace({"epochs": 1, "optimizer.name": name, "batch_size": 16, "model.width_1": 4})
    return run_trial(recipe, images, Execution(threads=1), lambda _: Decision.CONTINUE).last_weights

def is_loaded():
    return any(name.startswith("torch._dynamo.") for name in sys.modules)

defer_compiler_import()
without = {name: weights(name) for name in ("sgd", "adam", "adamw", "muon")}
assert not is_loaded()
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
assert is_loaded()
for name, expected in without.items():
    assert all(torch.equal(value, expected[key]) for key, value in weights(name).items())
print("trained")
"""


@pytest.mark.slow
def test_optimizers_need_no_compiler_and_give_the_same_weights() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
