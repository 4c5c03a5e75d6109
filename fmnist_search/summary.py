"""What a network looks like, by torchinfo."""

from __future__ import annotations

from dataclasses import dataclass

import torchinfo

from fmnist_search.models import Classifier, build
from fmnist_search.recipe import Architecture

COLUMNS = ("input_size", "output_size", "kernel_size", "num_params", "mult_adds")

COLUMN_WIDTH = 17
"""Of a table that every trial keeps: enough for the shape of 128 channels."""


@dataclass(frozen=True)
class ModelSummary:
    """A table of layers, the number of trainable parameters, and what one image takes.

    `mult_adds` counts its multiply-adds, `activation_bytes` what the layers put out in float32.
    """

    text: str
    parameters: int
    mult_adds: int
    activation_bytes: int


def summarize(architecture: Architecture) -> ModelSummary:
    """The summary of an architecture's network for one image; UserError where it is too large to build."""
    model: Classifier = build(architecture)
    found = torchinfo.summary(
        model,
        input_size=(1, 28, 28),
        device="cpu",
        col_names=COLUMNS,
        col_width=COLUMN_WIDTH,
        row_settings=("var_names",),
        verbose=0,
    )
    return ModelSummary(
        "\n".join(line.rstrip() for line in str(found).splitlines()).replace("(Units.MEGABYTES)", "(M)"),
        int(found.trainable_params),
        int(found.total_mult_adds),
        int(found.total_output_bytes),
    )
