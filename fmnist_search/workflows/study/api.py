"""Running a study and promoting its best recipes. Importing this loads neither torch nor MLflow nor Optuna."""

from __future__ import annotations

import contextlib

from fmnist_search.config.sections import Finalists
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.execution.backend import BackendFactory
from fmnist_search.files import free_bytes
from fmnist_search.results.study import StudySummary
from fmnist_search.results.training import Stopper, never_stop
from fmnist_search.user_account import complete_environment
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.workers import start_workers
from fmnist_search.workspace import Workspace, sqlite_path

LITTLE_SPACE_BYTES = 200_000_000
"""With less free space, a search says so before it starts."""


def run_study(
    config: StudyConfig,
    *,
    workspace: Workspace | None = None,
    fresh: bool = False,
    tracking: TrackingOptions = TrackingOptions(),
    stopper: Stopper = never_stop,
    callback: StudyCallback | None = None,
    backend_factory: BackendFactory | None = None,
) -> StudySummary:
    """Run a study until a limit of its budget is reached, or continue it, and register its champion.

    Every trial is a run in MLflow. `stopper` is called after every epoch of every trial and may end the trial or the
    study. With `fresh`, an earlier study of that name is archived first. `backend_factory` starts the workers, by
    default threads or processes of this machine.

    Raises:
        UserError: if images or device are missing, the store is unreachable, or the stored study has another space.
    """
    workspace, callback = workspace or Workspace.resolve(), callback or StudyCallback()
    config.check_names()
    complete_environment()
    workspace.check_writable()
    _report_little_space(workspace, config.name, callback)
    with start_workers(config, callback, backend_factory) as backend:
        # The workers import their libraries while this process imports torch, MLflow and Optuna here.
        from fmnist_search.workflows.study.opening import SessionOptions, open_session

        model_name = config.finalists.model_name if config.finalists.recipes else None
        options = SessionOptions(fresh=fresh, warm_starts=True, model_name=model_name, tracking=tracking)
        with open_session(workspace, config, backend, callback, options) as session:
            return session.run(stopper)


def promote(
    name: str,
    *,
    settings: Finalists | None = None,
    trial: int | None = None,
    max_parameters: int | None = None,
    backend: str | None = None,
    workspace: Workspace | None = None,
    tracking: TrackingOptions = TrackingOptions(),
    callback: StudyCallback | None = None,
) -> StudySummary:
    """Confirm the best recipes of a study from fresh seeds, and register the model of the selected one.

    `settings` replace those of the study file, `backend` its `execution.backend`. With `trial`, the recipe of this
    trial is the only one; with `max_parameters`, the best are those of the networks that have at most so many.

    Raises:
        UserError: if there is no such study, or it has no completed trial that fits.
    """
    from fmnist_search.workflows.lookup import load_study
    from fmnist_search.workflows.study.promotable import promotable_trials

    workspace, callback = workspace or Workspace.resolve(), callback or StudyCallback()
    stored = load_study(workspace, name)
    candidates = promotable_trials(stored.trial_records(), name, trial, max_parameters)
    config = stored.config.with_backend(backend) if backend else stored.config
    finalists = (settings or config.finalists).for_dataset(config.data.dataset)
    if trial is not None:
        finalists = finalists.model_copy(update={"recipes": 1})
    workspace.check_writable()
    with start_workers(config, callback) as workers:
        from fmnist_search.workflows.study.opening import SessionOptions, open_session

        options = SessionOptions(model_name=finalists.model_name, tracking=tracking)
        with open_session(workspace, config, workers, callback, options) as session:
            return session.promote(finalists, candidates)


def _report_little_space(workspace: Workspace, name: str, callback: StudyCallback) -> None:
    database = sqlite_path(workspace.tracking_uri)
    folders = {workspace.folder, *([database.parent] if database else [])}
    with contextlib.suppress(OSError, StopIteration):  # what cannot be asked is found when it is written
        free, folder = min((free_bytes(folder), folder) for folder in folders)
        if free < LITTLE_SPACE_BYTES:
            callback.on_message(
                f"{name}: the disk of {folder} has {free / 1e6:,.0f} MB left; if it becomes full the search ends, and "
                "the same command continues it once there is space"
            )
