"""The `Classifier` from raw pixels to logits: normalisation, network and test-time augmentation."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import NUM_CLASSES
from fmnist_search.recipe.families import Architecture

MAX_PARAMETERS = 50_000_000
"""Largest number of parameters. For images of 28 x 28 more is a mistake, and takes 200 MB of weights per trial."""

global_rng_lock = threading.RLock()
"""Held while anything is drawn from torch's global generator, which all threads of a process share.

A network that is built to draw a summary must not change the initial weights of one that a trial builds at that moment.
"""


class Classifier(nn.Module):
    """A network that takes raw pixels: mean and deviation of the training images are stored with the weights.

    Takes pixels (N, 28, 28) of 0..255, any dtype, and returns logits (N, classes). `mean` and `std` are floats, or
    tensors (28, 28) for each pixel. In evaluation mode the logits are those of the mean of the probabilities over the
    views of an image that `test_time` (one of `recipe.TEST_TIME_VIEWS`) names; in training mode there is one view.
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
        """Return the logits (N, classes) of pixels (N, 28, 28) of 0..255."""
        pixels = pixels.to(self.mean.dtype)
        if self.training or self.test_time == "none":
            return self._logits(pixels)
        return average_probabilities([self._logits(view) for view in augmented_views(pixels, self.test_time)])

    def _logits(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(((pixels - self.mean) / self.deviation).unsqueeze(1))
        return logits


def augmented_views(pixels: Tensor, test_time: str) -> list[Tensor]:
    """Return the images (N, H, W) and their changed copies for test-time augmentation.

    "flip" adds the mirror image, "shift" shifts by one pixel up, down, left and right, and "flip+shift" adds both of
    each. Pixels that a shift uncovers are 0, as in training.
    """
    views = [pixels]
    if "shift" in test_time:
        height, width = pixels.shape[1:]
        padded = functional.pad(pixels, (1, 1, 1, 1))
        corners = ((0, 1), (2, 1), (1, 0), (1, 2))
        views += [padded[:, top : top + height, left : left + width] for top, left in corners]
    if "flip" in test_time:
        views += [view.flip(-1) for view in views]
    return views


class Ensemble(nn.Module):
    """Several classifiers as one, with the mean of their probabilities. It takes the same pixels as they do."""

    def __init__(self, members: Sequence[Classifier]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, classes) whose softmax is the mean of the softmax of the members."""
        return average_probabilities([member(pixels) for member in self.members])


def average_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Return logits (N, classes) whose softmax is the mean of the softmax of the given logits."""
    return torch.stack([functional.log_softmax(each.float(), dim=1) for each in logits]).logsumexp(0)


def build(
    architecture: Architecture,
    mean: float | Tensor = 0.0,
    std: float | Tensor = 1.0,
    test_time: str = "none",
    num_classes: int = NUM_CLASSES,
) -> Classifier:
    """Return a new classifier of this architecture on the CPU, its weights drawn from torch's global generator.

    Raises:
        UserError: if it cannot be built; see `check_size`.
    """
    check_size(architecture, num_classes)
    with global_rng_lock:
        return Classifier(architecture.build_network(num_classes), mean, std, test_time)


def check_size(architecture: Architecture, num_classes: int = NUM_CLASSES) -> None:
    """Check a network without allocating it.

    Raises:
        UserError: if pooling leaves nothing of the image, or it has more than `MAX_PARAMETERS`.
    """
    count = count_parameters(architecture, num_classes)
    if count > MAX_PARAMETERS:
        raise UserError(
            f"model: this {architecture.family} would have {count:,} parameters; at most {MAX_PARAMETERS:,} "
            "are allowed: lower its widths, kernels or depth"
        )


def count_parameters(architecture: Architecture, num_classes: int = NUM_CLASSES) -> int:
    """Return the number of trainable parameters, from a network on the meta device, which allocates nothing."""
    with torch.device("meta"):
        network = architecture.build_network(num_classes)
    return sum(parameter.numel() for parameter in network.parameters())
