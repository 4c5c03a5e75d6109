"""A summary of a network, made with torchinfo: its layers, parameters and multiply-adds.

The values import neither torch nor torchinfo; `summarize` does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from fmnist_search.recipe.datasets import IMAGE_SIZE, NUM_CLASSES
from fmnist_search.recipe.families import Architecture

COLUMNS = ("input_size", "output_size", "kernel_size", "num_params", "mult_adds")
COLUMN_WIDTH = 17
"""Characters of a column of the table: enough for the shape of 128 channels."""


@dataclass(frozen=True)
class LayerSummary:
    """A layer without sublayers: name, class, output shape for one image, parameters, multiply-adds of the batch."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    mult_adds: int


@dataclass(frozen=True)
class ModelSummary:
    """A table of layers as text, the number of trainable parameters, and the cost of a batch.

    `mult_adds` counts multiply-adds, `activation_bytes` the outputs of all layers in float32.
    """

    text: str
    parameters: int
    mult_adds: int
    activation_bytes: int
    layers: tuple[LayerSummary, ...]


def summarize(architecture: Architecture, num_classes: int = NUM_CLASSES, batch_size: int = 1) -> ModelSummary:
    """Build the network of an architecture on the CPU, and return its summary for a batch, by default of one image.

    Raises:
        UserError: if the network is too large to build.
    """
    import torch
    import torchinfo

    from fmnist_search.models.classifier import build, global_rng_lock

    # Weights and torchinfo's image are drawn from the generator of the caller, which must not notice.
    with global_rng_lock, torch.random.fork_rng(devices=[]):
        found = torchinfo.summary(
            build(architecture, num_classes=num_classes),
            input_size=(batch_size, IMAGE_SIZE, IMAGE_SIZE),
            device="cpu",
            col_names=COLUMNS,
            col_width=COLUMN_WIDTH,
            row_settings=("var_names",),
            verbose=0,
        )
    layers = tuple(
        LayerSummary(_layer_path(layer), layer.class_name, tuple(layer.output_size[1:]), layer.num_params, layer.macs)
        for layer in found.summary_list
        if layer.is_leaf_layer
    )
    text = "\n".join(line.rstrip() for line in str(found).splitlines()).replace("(Units.MEGABYTES)", "(M)")
    return ModelSummary(
        text, int(found.trainable_params), int(found.total_mult_adds), int(found.total_output_bytes), layers
    )


@dataclass(frozen=True)
class NetworkSize:
    """The number of trainable parameters of a network, and of its multiply-adds for one image."""

    parameters: int
    mult_adds: int


@functools.lru_cache(maxsize=256)
def network_size(architecture: Architecture, num_classes: int = NUM_CLASSES) -> NetworkSize:
    """Return the size of a network, as `summarize` counts it.

    Raises:
        UserError: if the network is too large to build.
    """
    summary = summarize(architecture, num_classes)
    return NetworkSize(summary.parameters, summary.mult_adds)


def _layer_path(layer: Any) -> str:
    """Return the dotted name of a layer, without the outermost module: `network.layer1.0.conv1`."""
    parent = layer.parent_info
    return layer.var_name if parent is None or parent.parent_info is None else f"{_layer_path(parent)}.{layer.var_name}"
