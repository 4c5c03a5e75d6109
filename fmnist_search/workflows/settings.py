"""Values that group the parameters of workflows; importing them loads no library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PLOT_INTERVAL_SECONDS = 300.0
"""Seconds after which the figures of a running study are rendered again; it takes two seconds beside the trials."""


@dataclass(frozen=True)
class RunOptions:
    """How a training without a study is recorded.

    `name` replaces the network's label in the run's name; `origins` says where each value of the recipe comes from, by
    dotted name. Weights, epochs and recipe are copied to the folder `output`, and TensorBoard's files are written to
    the folder `tensorboard`; only a single training takes these two. With `plots` false, no figures are rendered.
    """

    name: str | None = None
    experiment: str = "fmnist-search"
    origins: Mapping[str, str] | None = None
    output: Path | None = None
    tensorboard: Path | None = None
    plots: bool = True
