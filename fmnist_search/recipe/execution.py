"""How a recipe is run: recorded with every result, never searched."""

from __future__ import annotations

from dataclasses import dataclass

MEMORY_FORMATS = ("contiguous", "channels_last")
ENGINES = ("plain", "graph")


@dataclass(frozen=True)
class Execution:
    """How a recipe is run on this machine.

    `device` is a torch device such as "cpu" or "cuda:0". `threads` is the number of intra-op threads on the CPU, 0 for
    torch's default. `engine` is "plain", or "graph" for captured CUDA graphs. `memory_format` is the layout of images
    and weights in memory, one of `MEMORY_FORMATS`. The `allocator` "retaining" keeps freed memory for the next step.
    `deterministic` allows only deterministic algorithms of torch.
    """

    device: str = "cpu"
    threads: int = 0
    engine: str = "plain"
    memory_format: str = "channels_last"
    allocator: str = "default"
    deterministic: bool = False


@dataclass(frozen=True)
class ExecutionSettings:
    """The user's settings of how to run trainings; `training.runtime.resolve_execution` makes an `Execution` of them.

    `device` is "auto" or a torch device. `threads` is the number of intra-op threads per training on the CPU; 0 takes
    the caller's default. `workers` is the number of concurrent trainings, or "auto". `precision` is "float32",
    "bfloat16", "auto" for the faster of the two on this machine, or None for that of the recipe. `memory_format` is one
    of `MEMORY_FORMATS`; with another one than before, a training gives values that differ in their last digits.
    """

    device: str = "auto"
    threads: int = 0
    workers: int | str = "auto"
    engine: str = "plain"
    deterministic: bool = False
    precision: str | None = None
    memory_format: str = "channels_last"
