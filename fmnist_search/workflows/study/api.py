"""Running a study and promoting its best recipes."""

from __future__ import annotations

from fmnist_search.config.sections import Finalists
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.execution.backend import BackendFactory, make_backend
from fmnist_search.results.study import StudySummary
from fmnist_search.results.training import Stopper
from fmnist_search.training.callbacks import never_stop
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.lookup import load_study, summarize_stored
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.session import SessionOptions, open_session
from fmnist_search.workspace import Workspace


def run_study(
    config: StudyConfig,
    *,
    workspace: Workspace | None = None,
    fresh: bool = False,
    tracking: TrackingOptions = TrackingOptions(),
    stopper: Stopper = never_stop,
    callback: StudyCallback | None = None,
    backend_factory: BackendFactory = make_backend,
) -> StudySummary:
    """Run a study until a limit of its budget is reached, or continue it, and register its champion.

    Every trial is a run in MLflow. `stopper` is called after every epoch of every trial and may end the trial or the
    study. With `fresh`, an earlier study of that name is archived first. `backend_factory` starts the workers.

    Raises:
        UserError: if images or device are missing, the store is unreachable, or the stored study has another space.
    """
    options = SessionOptions(
        fresh=fresh,
        warm_starts=True,
        tracking=tracking,
        backend_factory=backend_factory,
    )
    workspace = workspace or Workspace.resolve()
    with open_session(workspace, config, callback or StudyCallback(), options) as session:
        return session.run(stopper)


def promote(
    name: str,
    *,
    settings: Finalists | None = None,
    workspace: Workspace | None = None,
    tracking: TrackingOptions = TrackingOptions(),
    callback: StudyCallback | None = None,
) -> StudySummary:
    """Confirm the best recipes of a study from fresh seeds, and register the model of the selected one.

    `settings` replace those of the study file.

    Raises:
        UserError: if there is no such study, or it has no completed trial.
    """
    workspace = workspace or Workspace.resolve()
    stored = load_study(workspace, name)
    if summarize_stored(workspace, stored).best is None:
        raise UserError(f"study {name!r}: has no completed trial to promote; continue the search first", exit_code=3)
    config = stored.config
    finalists = (settings or config.finalists).for_dataset(config.data.dataset)
    with open_session(
        workspace,
        config,
        callback or StudyCallback(),
        SessionOptions(tracking=tracking),
    ) as session:
        return session.promote(finalists)
