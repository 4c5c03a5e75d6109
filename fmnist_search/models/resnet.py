"""Residual networks (arXiv 1512.03385): stages of blocks that add to their input, each stage twice as wide.

block   = 2 x (convolution 3 x 3 -> batch normalisation), added to the block's input -> activation
network = stem -> stages of blocks -> global average -> [dropout] -> logits

A stage after the first halves the image. With the default stem a small image keeps its size up to the second stage;
torchvision's ResNet-18 is four stages of two blocks behind a stem of 7 x 7, stride 2 and a pool. Layers have the
same names as in torchvision, so that its ImageNet weights can be loaded.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from fmnist_search.errors import UserError
from fmnist_search.models.activations import ACTIVATIONS
from fmnist_search.models.presets import EPOCHS, LEARNING_RATE, register_preset
from fmnist_search.recipe.families import Architecture, register_family
from fmnist_search.recipe.hyperparameters import hyperparameter
from fmnist_search.text import first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

REPLACED_LAYERS = ("conv1.", "fc.")
"""Layers whose shapes differ from torchvision's network, which has three colours and a thousand classes."""


@register_family("resnet")
@dataclass(frozen=True)
class ResNet(Architecture):
    """Hyperparameters of a `resnet`. The defaults are those of the ResNet-20 of the CIFAR experiments."""

    stages: int = hyperparameter(3, "number of stages", low=1, high=4)
    blocks: int = hyperparameter(3, "residual blocks per stage", low=1, high=9)
    width: int = hyperparameter(16, "channels of the first stage; each further one has twice as many", low=1, high=512)
    stem_kernel: int = hyperparameter(3, "kernel size of the first convolution", choices=(3, 5, 7))
    stem_stride: int = hyperparameter(1, "stride of the first convolution", choices=(1, 2))
    stem_pool: int = hyperparameter(1, "stride of a 3 x 3 maximum pool in the stem; 1 has none", choices=(1, 2))
    activation: str = hyperparameter("relu", "activation function", choices=tuple(ACTIVATIONS))
    dropout: float = hyperparameter(0.0, "dropout before the last layer", low=0, high=0.95)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages."""
        return tuple(self.width * 2**stage for stage in range(self.stages))

    def build_network(self, num_classes: int) -> nn.Module:
        """Return stem, stages and a linear layer for the logits, named as in torchvision."""
        from torch import nn

        from fmnist_search.models import layers

        modules: OrderedDict[str, nn.Module] = OrderedDict()
        modules["conv1"] = nn.Conv2d(
            1, self.width, self.stem_kernel, self.stem_stride, padding=self.stem_kernel // 2, bias=False
        )
        modules["bn1"] = layers.BatchNorm(self.width)
        modules["relu"] = layers.make_activation(self.activation)
        if self.stem_pool > 1:
            modules["maxpool"] = nn.MaxPool2d(3, self.stem_pool, padding=1)
        for stage, (inputs, outputs) in enumerate(itertools.pairwise((self.width, *self.widths)), start=1):
            first = layers.Residual(inputs, outputs, 1 if stage == 1 else 2, self.activation)
            rest = (layers.Residual(outputs, outputs, 1, self.activation) for _ in range(self.blocks - 1))
            modules[f"layer{stage}"] = nn.Sequential(first, *rest)
        modules["avgpool"] = layers.GlobalAverage()
        if self.dropout:
            modules["dropout"] = layers.Dropout(self.dropout)
        modules["fc"] = nn.Linear(self.widths[-1], num_classes)
        return nn.Sequential(modules)

    def pretrained_weights(self, read: Callable[[], Mapping[str, Tensor]] | None = None) -> Mapping[str, Tensor]:
        """Return the ImageNet weights of torchvision's ResNet-18 without those of its first and last layer.

        `read` returns the weights of the whole network by name; the default downloads them with torchvision.

        Raises:
            UserError: if this is not a ResNet-18, or the weights cannot be downloaded.
        """
        if (self.stages, self.blocks, self.width) != (4, 2, 64):
            raise UserError(
                "initial_weights: the ImageNet weights are those of a resnet with stages = 4, blocks = 2, width = 64; "
                "take these (the preset resnet18), or other initial weights"
            )
        weights = (read or _read_imagenet_weights)()
        return {name: value for name, value in weights.items() if not name.startswith(REPLACED_LAYERS)}


def _read_imagenet_weights() -> Mapping[str, Tensor]:
    import torch
    from torchvision.models import ResNet18_Weights

    weights = ResNet18_Weights.IMAGENET1K_V1
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, UnpicklingError) as error:
        file = weights.url.rpartition("/")[2]
        raise UserError(
            f"initial_weights: the ImageNet weights cannot be downloaded or read ({first_line(error)}); put {file} "
            f"into {torch.hub.get_dir()}/checkpoints, or take other initial weights"
        ) from None
    return state


register_preset(
    "resnet18",
    ResNet(stages=4, blocks=2, width=64, stem_kernel=7, stem_stride=2, stem_pool=2),
    {"batch_size": 64},
    published_accuracy="none",
    parameters=11_175_370,
    mult_adds=33_020_554,
    assumed_names=("optimizer.name", LEARNING_RATE, EPOCHS),
    deviations="with ImageNet weights on request: initial_weights = 'imagenet'",
)
