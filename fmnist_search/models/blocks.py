"""The hyperparameters that families of convolutional blocks share, each block with its own width, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fmnist_search.errors import UserError
from fmnist_search.recipe.families import Architecture
from fmnist_search.recipe.hyperparameters import Value, hyperparameter

MAX_DEPTH = 5
KERNEL_SIZES = (1, 3, 5, 7, 9, 11)
"""Kernel sizes: odd ones, whose padding is the same on both sides."""


def _width_field(block: int) -> int:
    return hyperparameter(0, f"channels of block {block}; 0 takes the default", low=1, high=4096)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class BlockArchitecture(Architecture):
    """An architecture of `depth` blocks. The widths of blocks beyond `depth` are 0."""

    default_widths: ClassVar[tuple[int, ...]]

    depth: int = hyperparameter(2, "number of blocks", low=1, high=MAX_DEPTH)
    width_1: int = _width_field(1)
    width_2: int = _width_field(2)
    width_3: int = _width_field(3)
    width_4: int = _width_field(4)
    width_5: int = _width_field(5)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fill_defaults("width", self.default_widths)

    def fill_defaults(self, prefix: str, defaults: tuple[int, ...]) -> None:
        """Set `{prefix}_1`, `{prefix}_2`, ...: 0 becomes the default in blocks up to `depth`, the others become 0."""
        for block, default in enumerate(defaults, start=1):
            given = getattr(self, f"{prefix}_{block}")
            object.__setattr__(self, f"{prefix}_{block}", (given or default) if block <= self.depth else 0)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each block up to `depth`."""
        return tuple(getattr(self, f"width_{block}") for block in range(1, self.depth + 1))

    @classmethod
    def is_active(cls, name: str, values: Mapping[str, Value]) -> bool:
        """Return False for the widths of blocks beyond `depth`."""
        stem, _, block = name.rpartition("_")
        return stem != "width" or int(block) <= int(values.get("depth", MAX_DEPTH))


def pooled_size(size: int, pool_size: int, block: int) -> int:
    """Return the side of an image after the pool of a block, in pixels.

    Raises:
        UserError: if the pool is larger than the image.
    """
    if size < pool_size:
        fewer = f"model.depth = {block - 1} or " if block > 1 else ""
        raise UserError(
            f"model.pool_size: pooling by {pool_size} leaves nothing of the image after block {block} (side {size}); "
            f"take {fewer}a smaller model.pool_size"
        )
    return size // pool_size


def convolved_size(size: int, kernel: int, block: int) -> int:
    """Return the side of an image after a convolution without padding, in pixels.

    Raises:
        UserError: if the kernel is larger than the image.
    """
    if size < kernel:
        fewer = f"model.depth = {block - 1}, " if block > 1 else ""
        raise UserError(
            f"model.kernel: a kernel of {kernel} leaves nothing of the image in block {block} (side {size}); "
            f"take {fewer}a smaller model.kernel or model.padding = 'same'"
        )
    return size - kernel + 1
