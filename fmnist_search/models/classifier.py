"""The `Classifier`: normalisation, network and test-time views of an image, from raw pixels to logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmnist_search.errors import UserError
from fmnist_search.recipe.families import Architecture

NUM_CLASSES = 10
MAX_PARAMETERS = 50_000_000
"""Networks above this are refused: at 28x28 they are mistakes, and 200 MB of weights a trial."""


class Classifier(nn.Module):
    """Raw pixels to logits: the training images' mean and deviation travel with the weights.

    Takes (N, 28, 28) pixels of 0..255, any dtype, and gives (N, classes) logits. Mean and deviation are numbers, or
    (28, 28) where each pixel has its own. In evaluation mode the logits are those of the mean of the probabilities over
    the `test_time` views of an image, one of `make_recipe.TEST_TIME_VIEWS`; in training mode an image is seen as it is.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, mean: float | Tensor, std: float | Tensor, test_time: str = "none"):
        super().__init__()
        self.network = network
        self.test_time = test_time
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).clone())
        self.register_buffer("deviation", torch.as_tensor(std, dtype=torch.float32).clone())

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of such pixels."""
        pixels = pixels.to(self.mean.dtype)
        if self.training or self.test_time == "none":
            return self._logits(pixels)
        return average_probabilities([self._logits(view) for view in augmented_views(pixels, self.test_time)])

    def _logits(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(((pixels - self.mean) / self.deviation).unsqueeze(1))
        return logits


def augmented_views(pixels: Tensor, test_time: str) -> list[Tensor]:
    """The images (N, H, W) as they are, and as test-time augmentation shows them besides.

    "flip" adds the mirror image, "shift" one pixel up, down, left and right, "flip+shift" these of both; what a shift
    uncovers is 0, as in training.
    """
    seen = [pixels]
    if "shift" in test_time:
        height, width = pixels.shape[1:]
        padded = functional.pad(pixels, (1, 1, 1, 1))
        corners = ((0, 1), (2, 1), (1, 0), (1, 2))
        seen += [padded[:, top : top + height, left : left + width] for top, left in corners]
    if "flip" in test_time:
        seen += [view.flip(-1) for view in seen]
    return seen


class Ensemble(nn.Module):
    """Several classifiers as one: its logits are those of the mean of the members' probabilities.

    Takes what they take, and stands wherever a single one is judged or exported.
    """

    def __init__(self, members: Sequence[Classifier]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, classes) whose softmax is the mean of the members' softmax."""
        return average_probabilities([member(pixels) for member in self.members])


def average_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Logits (N, classes) whose softmax is the mean of the softmax of each of these."""
    return torch.stack([functional.log_softmax(each.float(), dim=1) for each in logits]).logsumexp(0)


def build(
    architecture: Architecture,
    mean: float | Tensor = 0.0,
    std: float | Tensor = 1.0,
    test_time: str = "none",
) -> Classifier:
    """A fresh network of this architecture on the CPU; initial weights come from torch's global generator.

    Raises:
        UserError: it cannot be built; see `check_size`.
    """
    check_size(architecture)
    return Classifier(architecture.build_network(NUM_CLASSES), mean, std, test_time)


def check_size(architecture: Architecture) -> None:
    """Refuse a network before it is built: on the meta device nothing is allocated.

    Raises:
        UserError: it pools the image away, or has more than MAX_PARAMETERS.
    """
    count = count_parameters(architecture)
    if count > MAX_PARAMETERS:
        raise UserError(
            f"model: this {architecture.family} would have {count:,} parameters; at most {MAX_PARAMETERS:,} "
            "are allowed: lower its widths, kernels or depth"
        )


def count_parameters(architecture: Architecture) -> int:
    """Number of trainable parameters, without building the network."""
    with torch.device("meta"):
        network = architecture.build_network(NUM_CLASSES)
    return sum(parameter.numel() for parameter in network.parameters())
