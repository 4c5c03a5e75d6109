"""Values that group the parameters of workflows; importing them loads no library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrackingOptions:
    """What a study writes to MLflow.

    If not `enabled`, it writes nothing and has no champion. Figures are rendered every `plot_interval` seconds, which
    takes two seconds beside the trials, and at the end; with None, none are rendered. At the end, a store that takes
    nothing for `flush_timeout` seconds counts as down; `fmnist-search sync` sends the rest later.
    """

    enabled: bool = True
    plot_interval: float | None = 300.0
    flush_timeout: float = 30.0


@dataclass(frozen=True)
class RunOptions:
    """How a training without a study is recorded.

    `name` replaces the network's label in the run's name; `origins` says where each value of the recipe comes from, by
    dotted name. Weights, epochs and recipe are copied to the folder `output`, whose files are replaced only with
    `overwrite`; TensorBoard's files are written to a subfolder of `tensorboard`. Of several seeds, each has its own
    subfolder in both. With `test`, the kept weights of a completed training are evaluated once on the test images.
    With `register`, they are registered as a version of the model `model_name`, by default that of promoted models.
    With `plots` false, no figures are rendered.
    """

    name: str | None = None
    experiment: str = "fmnist-search"
    origins: Mapping[str, str] | None = None
    output: Path | None = None
    overwrite: bool = False
    test: bool = False
    register: bool = False
    model_name: str | None = None
    tensorboard: Path | None = None
    plots: bool = True
