"""The commands that `benchmarks.latency` measures, their yardsticks, and the study that they read."""

from __future__ import annotations

from typing import NamedTuple

STUDY = """
name = "latency"
question = "How long do commands take?"
[data]
train_images = 300
validation = 300
[budget]
trials = 10
epochs = 1
[sampler]
name = "random"
[space.common]
batch_size = [50, 100]
optimizer.learning_rate = { low = 3e-3, high = 3e-2, log = true }
[space.cnn]
depth = [1, 2]
width_1 = [4, 8]
width_2 = [8]
[finalists]
recipes = 1
seeds = 2
epochs = 1
images = "slice"
refit = "none"
[execution]
workers = 1
"""
"""The search that creates the store: enough trials for `importance`, and a champion for `predict`."""

LOAD_STUDY = """
import optuna
optuna.load_study(study_name="latency", storage="sqlite:///fmnist-search/optuna.db").trials
"""
IMPORT_LIBRARIES = "import pydantic, typer, rich"
USE_LIBRARIES = """
from pydantic import BaseModel
from rich.console import Console
from typer import Typer
class Model(BaseModel): number: int
Model(number=1), Console(), Typer()
"""
"""`import pydantic` alone loads nearly nothing; this also loads what its models use."""
LOAD_MODEL = """
import torch
import mlflow.pyfunc
mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.pyfunc.load_model("models:/fmnist-search@champion")
"""
END_AT_ONCE = """
import os
os._exit(0)
"""
"""Python takes more than a second to unload torch and MLflow; a command need not wait for that."""


class Command(NamedTuple):
    """A measured command: the arguments after `python -m fmnist_search`, run in a folder with or without the store.

    In the arguments {study} stands for the study file.
    """

    what: str
    arguments: str
    in_store: bool = True


class Comparison(NamedTuple):
    """Commands, and their yardsticks: Python scripts by their name in the table."""

    yardsticks: dict[str, str]
    commands: tuple[Command, ...]


COMPARISONS = (
    Comparison(
        {"a script that loads the study with optuna": LOAD_STUDY},
        (
            Command("status", "status"),
            Command("leaderboard", "leaderboard"),
            Command("show", "show"),
            Command("importance", "importance"),
        ),
    ),
    Comparison(
        {
            f'python -c "{IMPORT_LIBRARIES}"': IMPORT_LIBRARIES,
            "a script that uses pydantic, typer and rich": USE_LIBRARIES,
        },
        (
            Command("studies list", "studies list"),
            Command("studies list, no store", "studies list", in_store=False),
            Command("space", "space {study}", in_store=False),
            Command("models", "models", in_store=False),
        ),
    ),
    Comparison(
        {
            "a script that loads the model with torch and mlflow.pyfunc": LOAD_MODEL,
            "the same script, ended by os._exit": LOAD_MODEL + END_AT_ONCE,
        },
        (Command("predict --test-image 0", "predict --test-image 0"),),
    ),
    Comparison({}, (Command("search --dry-run", "search {study} --dry-run", in_store=False),)),
)
