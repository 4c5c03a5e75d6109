"""The command line. Each command imports what it needs when it runs, so that `--help` and light commands are fast."""

# `--help` lists the commands in the order of these imports.
# ruff: noqa: F401
# isort: off
from fmnist_search.cli import search
from fmnist_search.cli import running
from fmnist_search.cli import train
from fmnist_search.cli import sweeps
from fmnist_search.cli import inspect
from fmnist_search.cli import leaderboard
from fmnist_search.cli import studies
from fmnist_search.cli import stored_studies
from fmnist_search.cli import presets
from fmnist_search.cli import models
from fmnist_search.cli import export
from fmnist_search.cli import predict
from fmnist_search.cli import compare
from fmnist_search.cli import runs
from fmnist_search.cli import draw
from fmnist_search.cli import environment
from fmnist_search.cli.app import app, run_process, main

# isort: on

__all__ = ["app", "main", "run_process"]
