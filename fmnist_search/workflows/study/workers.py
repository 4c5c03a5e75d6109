"""The workers of a study, started before anything else is imported.

Worker processes need seconds to import their libraries. This module needs neither torch, if the study trains on the
CPU, nor MLflow and Optuna, so that this process and its workers import at the same time.
"""

from __future__ import annotations

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.execution.backend import Backend, BackendFactory, make_backend
from fmnist_search.execution.capacity import worker_count
from fmnist_search.execution.process_backend import Liveness
from fmnist_search.recipe.execution import Execution
from fmnist_search.training.devices import resolve_execution
from fmnist_search.workflows.callbacks import StudyCallback


def start_workers(
    config: StudyConfig, callback: StudyCallback, backend_factory: BackendFactory | None = None
) -> Backend:
    """Return a backend with as many workers as the study asks for or the machine holds; report it if they differ.

    Without a `backend_factory` it is that of `make_backend`, with the heartbeats that the study asks for.

    Raises:
        UserError: if the device is missing, or does not support what is asked for.
    """
    execution = study_execution(config)
    needs_size = config.execution.workers == "auto" and execution.engine == "graph"
    count, remark = worker_count(config.execution.workers, execution, _step_bytes(config) if needs_size else ())
    if remark:
        callback.on_message(f"{config.name}: {remark}")
    if backend_factory:
        return backend_factory(execution, count)
    return make_backend(execution, count, Liveness.of_heartbeat(config.execution.heartbeat_seconds))


def study_execution(config: StudyConfig) -> Execution:
    """Return the execution that a study asks for; on a CPU a trial gets one thread by default.

    Raises:
        UserError: if the device is missing, or does not support what is asked for.
    """
    settings = config.execution
    return resolve_execution(
        settings.device, settings.threads or 1, settings.engine, deterministic=settings.deterministic
    )


def _step_bytes(config: StudyConfig) -> list[int]:
    from fmnist_search.search.preview import preview_recipes

    return [preview.step_bytes for preview in preview_recipes(config, "bfloat16")]
