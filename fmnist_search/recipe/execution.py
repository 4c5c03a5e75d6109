"""How a recipe is run: recorded with every result, never sampled."""

from __future__ import annotations

from dataclasses import dataclass

MEMORY_FORMATS = ("contiguous", "channels_last")
ENGINES = ("plain", "graph")


@dataclass(frozen=True)
class Execution:
    """How a recipe is run: recorded with every result, never sampled.

    `device` is a torch device such as "cpu" or "cuda:0"; `threads` counts intra-op threads on the CPU, 0 leaves
    the choice to torch; `engine` names the loop: "plain", or "graph" for captured CUDA graphs; `memory_format` is how
    images and weights lie in memory; the `allocator` "retaining" keeps freed memory for the next step;
    `deterministic` asks torch for its deterministic algorithms alone.
    """

    device: str = "cpu"
    threads: int = 0
    engine: str = "plain"
    memory_format: str = "channels_last"
    allocator: str = "default"
    deterministic: bool = False


@dataclass(frozen=True)
class ExecutionSettings:
    """How trainings are asked to be run; `training.runtime.resolve_execution` makes an `Execution` of it.

    `device` is "auto" or a torch device; `threads` counts intra-op threads of a training on the CPU, 0 takes the
    caller's default; `workers` is the number of trainings at a time or "auto"; `precision` is "float32", "bfloat16",
    "auto" for a measurement on this machine, or None for the recipe's own.
    """

    device: str = "auto"
    threads: int = 0
    workers: int | str = "auto"
    engine: str = "plain"
    deterministic: bool = False
    precision: str | None = None
