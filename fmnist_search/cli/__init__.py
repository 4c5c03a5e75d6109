"""The command line: parse, call, print. Heavy imports stand inside the commands, so that `--help` is instant."""

# The order of these imports is the order of the commands in `--help`.
# ruff: noqa: F401
# isort: off
from fmnist_search.cli import search
from fmnist_search.cli import train
from fmnist_search.cli import sweeps
from fmnist_search.cli import inspect
from fmnist_search.cli import presets
from fmnist_search.cli import models
from fmnist_search.cli import predict
from fmnist_search.cli import runs
from fmnist_search.cli import draw
from fmnist_search.cli import environment
from fmnist_search.cli.app import app, run_process, main

# isort: on

__all__ = ["app", "main", "run_process"]
