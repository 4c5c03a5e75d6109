"""`python -m fmnist_search`: what MLproject calls."""

from fmnist_search.cli import run_process

run_process()
