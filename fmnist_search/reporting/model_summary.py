"""What a network looks like, by torchinfo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torchinfo

from fmnist_search.models.classifier import Classifier, build
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.families import Architecture

COLUMNS = ("input_size", "output_size", "kernel_size", "num_params", "mult_adds")

COLUMN_WIDTH = 17
"""Of a table that every trial keeps: enough for the shape of 128 channels."""


@dataclass(frozen=True)
class LayerSummary:
    """A layer that has none inside it: its name, kind, shape of what it puts out for one image, parameters and work."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    mult_adds: int


@dataclass(frozen=True)
class ModelSummary:
    """A table of layers, the number of trainable parameters, and what one image takes.

    `mult_adds` counts its multiply-adds, `activation_bytes` what the layers put out in float32.
    """

    text: str
    parameters: int
    mult_adds: int
    activation_bytes: int
    layers: tuple[LayerSummary, ...]


def summarize(architecture: Architecture) -> ModelSummary:
    """The summary of an architecture's network for one image; UserError where it is too large to build."""
    model: Classifier = build(architecture)
    found = torchinfo.summary(
        model,
        input_size=(1, IMAGE_SIZE, IMAGE_SIZE),
        device="cpu",
        col_names=COLUMNS,
        col_width=COLUMN_WIDTH,
        row_settings=("var_names",),
        verbose=0,
    )
    layers = tuple(
        LayerSummary(
            _layer_path(layer),
            layer.class_name,
            tuple(layer.output_size[1:]),
            layer.num_params,
            layer.macs,
        )
        for layer in found.summary_list
        if layer.is_leaf_layer
    )
    text = "\n".join(line.rstrip() for line in str(found).splitlines()).replace("(Units.MEGABYTES)", "(M)")
    return ModelSummary(
        text, int(found.trainable_params), int(found.total_mult_adds), int(found.total_output_bytes), layers
    )


def _layer_path(layer: Any) -> str:
    """A layer's name with those of the modules around it, the outermost apart: `network.layer1.0.conv1`."""
    above = layer.parent_info
    return layer.var_name if above is None or above.parent_info is None else f"{_layer_path(above)}.{layer.var_name}"
