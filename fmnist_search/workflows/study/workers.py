"""The workers of a study, started before anything else is imported.

Worker processes need seconds to import their libraries. This module needs neither torch, if the study trains on the
CPU, nor MLflow and Optuna, so that this process and its workers import at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fmnist_search.config.execution import RaySection, parse_memory
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.execution.backend import Backend, BackendFactory, make_backend
from fmnist_search.execution.capacity import worker_count
from fmnist_search.execution.process_backend import Liveness
from fmnist_search.execution.ray_settings import RayResources, RaySettings
from fmnist_search.recipe.execution import Execution
from fmnist_search.training.devices import resolve_execution
from fmnist_search.workflows.callbacks import StudyCallback


def start_workers(
    config: StudyConfig, callback: StudyCallback, backend_factory: BackendFactory | None = None
) -> Backend:
    """Return a backend with as many workers as the study asks for or the machine holds; report it if they differ.

    Without a `backend_factory` it is the one that the study names, with the heartbeats that the study asks for. On a
    Ray cluster, `execution` is decided by `runtime.resolve_runtime` once there is a worker.

    Raises:
        UserError: if the device is missing, or does not support what is asked for; if the cluster cannot be used.
    """
    if config.execution.backend == "ray" and not backend_factory:
        return _start_on_ray(config, callback)
    execution = execution_request(config)()
    needs_size = config.execution.workers == "auto" and execution.engine == "graph"
    count, remark = worker_count(config.execution.workers, execution, step_bytes(config) if needs_size else ())
    if remark:
        callback.on_message(f"{config.name}: {remark}")
    if backend_factory:
        return backend_factory(execution, count)
    liveness = Liveness.of_heartbeat(config.execution.heartbeat_seconds)
    return make_backend(execution, count, liveness, config.execution.backend)


def execution_request(config: StudyConfig) -> Callable[[], Execution]:
    """Return a function that returns, on the machine that trains, the execution that a study asks for.

    On a CPU a trial gets one thread by default, and on a Ray cluster the CPUs that its worker reserves for it. The
    function raises UserError if the device is missing, or does not support what is asked for.
    """
    settings = config.execution
    threads = settings.threads or 1
    if settings.backend == "ray" and not settings.threads:
        ray = ray_settings(config)
        threads = max(1, int(ray.resources.cpu / (1 if ray.streams == "auto" else ray.streams)))
    return partial(resolve_execution, settings.device, threads, settings.engine, deterministic=settings.deterministic)


def ray_settings(config: StudyConfig) -> RaySettings:
    """Return what a study says about its Ray cluster and its workers there."""
    section = config.execution.ray or RaySection()
    resources = section.resources
    return RaySettings(
        section.address,
        RayResources(resources.cpu, resources.gpu, parse_memory(resources.memory)),
        section.streams,
        section.labels,
        section.allow_no_token,
    )


def choose_streams(config: StudyConfig, backend: Backend, execution: Execution) -> None:
    """Let each worker on a Ray cluster run as many trainings at a time as keep its GPU busy, if the study leaves that.

    A worker decides it: this machine may have no GPU. On one machine `start_workers` has decided it.
    """
    ray = config.execution.ray
    if config.execution.backend != "ray" or ray is None or ray.streams != "auto" or execution.engine != "graph":
        return
    from fmnist_search.execution.ray_backend import RayBackend

    if isinstance(backend, RayBackend):
        backend.streams, _ = backend.run_on_worker(worker_count, "auto", execution, step_bytes(config))


def _start_on_ray(config: StudyConfig, callback: StudyCallback) -> Backend:
    from fmnist_search.execution.ray_backend import RayBackend
    from fmnist_search.execution.ray_cluster import describe_nodes

    workers, settings = config.execution.workers, ray_settings(config)
    backend = RayBackend(
        Execution(),
        "auto" if workers == "auto" else int(workers),
        settings,
        heartbeat_seconds=config.execution.heartbeat_seconds,
        on_message=lambda message: callback.on_message(f"{config.name}: {message}"),
    )
    cluster = backend.cluster
    callback.on_message(
        f"{config.name}: runs on the Ray cluster at {cluster.address}, {describe_nodes(cluster.nodes)}; a worker takes "
        f"{settings.resources}"
    )
    return backend


def step_bytes(config: StudyConfig) -> list[int]:
    """Return estimates of how many bytes the training steps of a study's first recipes move."""
    from fmnist_search.search.preview import preview_recipes

    return [preview.step_bytes for preview in preview_recipes(config, "bfloat16")]
