"""The table [execution] of a study file: where and how trials are run."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fmnist_search.config.sections import Section
from fmnist_search.errors import UserError, did_you_mean

MAX_WORKERS = 1_024
MAX_THREADS = 1_024
MAX_STREAMS = 64
MAX_MEMORY = 2**50
"""Bytes of memory of one worker."""

BACKENDS = ("auto", "threads", "processes", "ray")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
MEMORY_PATTERN = r"^(\d+(\.\d+)?) ?([KMGT]i?)?B$"
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")


def check_workers(given: object) -> int | str:
    """Return a number of workers or "auto".

    Raises:
        UserError: if the value is neither.
    """
    if isinstance(given, int) and not isinstance(given, bool) and 0 < given <= MAX_WORKERS:
        return given
    if isinstance(given, str) and given == "auto":
        return given
    raise UserError(
        f"execution.workers: {given!r} is not a number of trials; give 1 or more, or 'auto', and at most {MAX_WORKERS}"
    )


def check_backend(given: object) -> object:
    """Return the name of a backend.

    Raises:
        UserError: if there is no such backend.
    """
    if given in BACKENDS:
        return given
    raise UserError(f"execution.backend: no backend {given!r}; {did_you_mean(str(given), BACKENDS)}")


def _check_address(given: str) -> str:
    """Return the address of a Ray cluster; UserError if it is neither "auto" nor a host and a port."""
    if given == "auto":
        return given
    if given.startswith("ray://"):
        raise UserError(
            f"execution.ray.address: {given!r} is an address of Ray Client, which this search cannot use; give the "
            "host and the port of the head (HOST:6379), or start the search on a node of the cluster with 'auto'"
        )
    match = _ADDRESS.fullmatch(given)
    if not match or not 0 < int(match["port"]) < 2**16:
        raise UserError(
            f"execution.ray.address: {given!r} is not an address; give HOST:PORT, such as head:6379, or 'auto'"
        )
    return given


def _check_streams(given: Any) -> Any:
    """Return a number of trainings in one worker, or "auto"; UserError if the value is neither."""
    is_number = isinstance(given, int) and not isinstance(given, bool) and 0 < given <= MAX_STREAMS
    if not is_number and given != "auto":
        raise UserError(
            f"execution.ray.streams: {given!r} is not a number of trials; give 1 to {MAX_STREAMS}, or 'auto'"
        )
    return given


def parse_memory(given: str | int) -> int:
    """Return the bytes of a memory size such as "4GiB" or "500 MB".

    Raises:
        UserError: if it is none, or too large.
    """
    match = re.fullmatch(MEMORY_PATTERN, given) if isinstance(given, str) else None
    if isinstance(given, bool) or (match is None and not isinstance(given, int)):
        raise UserError(
            f"execution.ray.resources.memory: {given!r} is not a size; give bytes, or a text such as '4GiB'"
        )
    size = int(given) if match is None else int(float(match[1]) * _UNITS[(match[3] or "").upper()])
    if not 0 <= size <= MAX_MEMORY:
        raise UserError(f"execution.ray.resources.memory: {given!r} is out of bounds; give 0 to 1024TiB")
    return size


def _check_memory(given: Any) -> Any:
    parse_memory(given)
    return given


class RayResourcesSection(Section):
    """What a worker reserves on its node."""

    cpu: float = Field(1, gt=0, le=MAX_THREADS, description="CPU cores")
    gpu: float = Field(0, ge=0, le=64, description="GPUs; a fraction such as 0.25 lets several workers share one")
    memory: Annotated[str | int, BeforeValidator(_check_memory)] = Field(
        "1200MiB",
        description="memory as text such as 4GiB, or bytes; 0 reserves none",
        json_schema_extra={
            "anyOf": [
                {"type": "string", "pattern": MEMORY_PATTERN},
                {"type": "integer", "minimum": 0, "maximum": MAX_MEMORY},
            ]
        },
    )

    @model_validator(mode="after")
    def _check_gpu(self) -> RayResourcesSection:
        if self.gpu > 1 and self.gpu != int(self.gpu):
            raise UserError(
                f"execution.ray.resources.gpu: {self.gpu:g} is neither a part of one GPU nor a number of GPUs; give a "
                "value below 1 or a whole number"
            )
        return self


class RaySection(Section):
    """The cluster that runs the trials if `backend` is `ray`, and what one of its workers has."""

    address: Annotated[str, AfterValidator(_check_address)] = Field(
        "auto", description="host:port of the cluster's head; auto takes the cluster that this machine belongs to"
    )
    resources: RayResourcesSection = RayResourcesSection()
    streams: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=MAX_STREAMS)], BeforeValidator(_check_streams)
    ] = Field(
        "auto", description="trials in one worker at a time; auto is 1, or with CUDA graphs as many as its GPU holds"
    )
    labels: dict[str, str] = Field({}, description="labels that a node must have, such as ray.io/accelerator-type")
    allow_no_token: bool = Field(
        False, description="use a cluster that runs the code of everybody who reaches its ports"
    )


class ExecutionSection(Section):
    """How trials are run; the first run of a study decides it for all trials, except where they run."""

    backend: Annotated[Literal["auto", "threads", "processes", "ray"], BeforeValidator(check_backend)] = Field(
        "auto", description="what runs trials: threads or processes of this machine, which auto chooses from, or Ray"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    workers: Annotated[Literal["auto"] | PositiveInt, BeforeValidator(check_workers)] = Field(
        "auto", description="trials at a time; auto takes as many as cores, memory, the GPU or the cluster allow"
    )
    threads: int = Field(
        0, ge=0, le=MAX_THREADS, description="intra-op threads of a trial on a CPU; 0 means 1, with Ray its CPUs"
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: Literal["plain", "graph"] = Field(
        "plain", description="plain, or graph to capture training steps in CUDA graphs (experimental)"
    )
    deterministic: bool = Field(False, description="use only deterministic algorithms, which may be slower")
    checkpoint_seconds: float = Field(
        30, ge=0, le=86_400, description="a running trial saves its state after an epoch, at the latest after so long"
    )
    heartbeat_seconds: float = Field(
        15, ge=0.1, le=3_600, description="workers and searches report that they run; a worker that misses two is ended"
    )
    lease_seconds: float = Field(
        60, ge=0.2, le=86_400, description="without heartbeats for so long, another process may take over the study"
    )
    ray: RaySection | None = Field(None, validate_default=True)

    @field_validator("ray")
    @classmethod
    def _complete_ray(cls, ray: RaySection | None, before: ValidationInfo) -> RaySection | None:
        """Return the settings of a cluster if one is used; other studies do not show them."""
        return RaySection() if ray is None and before.data.get("backend") == "ray" else ray

    @model_validator(mode="after")
    def _check_lease(self) -> ExecutionSection:
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise UserError(
                f"execution.lease_seconds: {self.lease_seconds:g} is less than two heartbeats of "
                f"{self.heartbeat_seconds:g} s; give at least {2 * self.heartbeat_seconds:g}, or a shorter "
                "execution.heartbeat_seconds"
            )
        return self

    @model_validator(mode="after")
    def _check_ray(self) -> ExecutionSection:
        if self.ray is None or self.backend != "ray":
            return self
        if self.device.partition(":")[0] == "cuda" and not self.ray.resources.gpu:
            raise UserError(
                f"execution.device: {self.device!r} needs a GPU, and a worker reserves none; give "
                "execution.ray.resources.gpu = 1"
            )
        return self
