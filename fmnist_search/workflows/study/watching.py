"""Following a study that another process searches, by reading Optuna's storage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fmnist_search.errors import UserError
from fmnist_search.results.study import RunningTrial, StopReason, TrialRecord
from fmnist_search.search.study_store import StudyStore
from fmnist_search.workflows.lookup import load_study
from fmnist_search.workflows.study.running import running_sessions
from fmnist_search.workflows.study.stopping import current_stop_reason
from fmnist_search.workspace import Workspace


@dataclass(frozen=True)
class StudySnapshot:
    """A study at one moment: the trials that have ended, those that are being trained, and whether a session runs.

    `stop_reason` says which limit the search has reached; a session then confirms and registers the best recipes.
    """

    trials: Sequence[TrialRecord]
    running: Sequence[RunningTrial]
    is_running: bool
    stop_reason: StopReason


def load_watched(workspace: Workspace, name: str | None = None) -> StudyStore:
    """Return a stored study, by default the one whose session began last, else the one that was created last.

    Raises:
        UserError: if there is no such study, or none at all.
    """
    sessions = running_sessions(workspace.sessions_folder)
    return load_study(workspace, name or (sessions[-1].study if sessions else None))


def follow(workspace: Workspace, study_store: StudyStore, poll_seconds: float = 1.0) -> Iterator[StudySnapshot]:
    """Yield a study again and again, until no session of it runs; the last snapshot has the final state.

    Raises:
        UserError: if the study is archived or deleted in the meantime.
    """
    name = study_store.config.name
    while True:
        # Looked up before the trials, so that the last snapshot has all that the session stored.
        sessions = [session for session in running_sessions(workspace.sessions_folder) if session.study == name]
        try:
            running = study_store.running_trials(sessions[0].started_at) if sessions else []
            trials, reason = study_store.trial_records(), current_stop_reason(study_store)
        except KeyError:
            raise UserError(f"study {name!r}: was archived or deleted; watch it again if it began anew") from None
        yield StudySnapshot(trials, running, bool(sessions), reason)
        if not sessions:
            return
        time.sleep(poll_seconds)
