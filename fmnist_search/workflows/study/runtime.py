"""How the trials of a study are run: decided when it starts, on a machine that trains, and kept when it continues."""

from __future__ import annotations

from functools import partial

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.execution.backend import Backend
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from fmnist_search.training.devices import resolve_execution
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.study.workers import execution_request
from fmnist_search.workflows.tuning import tuned


def resolve_runtime(config: StudyConfig, backend: Backend) -> StudyRuntime:
    """Return how the trials of a new study run: the fastest way on a worker that the study leaves open.

    Raises:
        UserError: if no worker can be started, or the device is missing there.
    """
    execution = backend.run_on_worker(execution_request(config))
    return StudyRuntime(*backend.run_on_worker(tuned, execution, config.execution.precision))


def stored_runtime(study_store: StudyStore, backend: Backend, callback: StudyCallback) -> StudyRuntime | None:
    """Return how a study's trials have been run, or None for a new study; report it if the settings ask for another.

    Raises:
        UserError: if the study's device is missing where its trials run now.
    """
    runtime, config = study_store.runtime, study_store.config
    if runtime is None:
        return None
    kept, settings = runtime.execution, config.execution
    try:
        backend.run_on_worker(partial(resolve_execution, kept.device, engine=kept.engine))
    except UserError as error:
        if not error.lines[0].startswith(("device", "engine")):
            raise
        raise UserError(
            f"study {config.name!r}: began on {kept.device!r}, which cannot be used here; continue it where there is "
            "one, choose another name (--name), or begin anew with --fresh"
        ) from None
    before = study_store.stored_backend
    if before and before != settings.backend and "ray" in (before, settings.backend):
        what = f"on {kept.device} in {runtime.precision}"
        callback.on_message(f"{config.name}: its backend is {settings.backend} now and was {before}; it stays {what}")
    differs = settings.device not in ("auto", kept.device) or settings.threads not in (0, kept.threads)
    if differs or settings.engine != kept.engine:
        how = f"on {kept.device} with {kept.threads} threads and the {kept.engine} engine"
        callback.on_message(f"{config.name} continues as it began: {how}")
    return runtime
