"""Run the command line with `python -m fmnist_search`, as MLproject does."""

from fmnist_search.cli import run_process

run_process()
