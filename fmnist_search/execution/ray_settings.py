"""The settings of workers on a Ray cluster. Importing this loads neither Ray nor torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fmnist_search.execution.capacity import WORKER_MEMORY_BYTES


@dataclass(frozen=True)
class RayResources:
    """What a worker reserves on its node: CPUs, GPUs (a fraction shares one) and bytes of memory, 0 for no limit."""

    cpu: float = 1.0
    gpu: float = 0.0
    memory: int = WORKER_MEMORY_BYTES

    @property
    def by_name(self) -> dict[str, float]:
        """The amounts by the names that Ray gives them, without those that are 0."""
        amounts = {"CPU": self.cpu, "GPU": self.gpu, "memory": float(self.memory)}
        return {name: amount for name, amount in amounts.items() if amount}

    def __str__(self) -> str:
        parts = [f"{self.cpu:g} CPU", f"{self.gpu:g} GPU" if self.gpu else ""]
        parts.append(f"{self.memory / 2**30:.1f} GiB of memory" if self.memory else "")
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class RaySettings:
    """Which cluster runs the trainings, and what one of its workers has.

    `address` is "auto" for the cluster of this machine (or of the variable RAY_ADDRESS), or the host and port of a
    cluster's head. `streams` are the trainings in one worker at a time; with "auto" it is one, or for captured CUDA
    graphs the number that keeps the worker's GPU busy. `labels` are those that a node must have. With
    `allow_no_token`, a cluster that runs the code of whoever reaches its ports is used all the same.
    """

    address: str = "auto"
    resources: RayResources = RayResources()
    streams: int | Literal["auto"] = "auto"
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    allow_no_token: bool = False

    def actor_options(self) -> dict[str, Any]:
        """Return the options of an actor of Ray that reserve the resources; a node with the labels is chosen before."""
        options: dict[str, Any] = {"num_cpus": self.resources.cpu, "num_gpus": self.resources.gpu}
        if self.resources.memory:
            options["memory"] = self.resources.memory
        return options
