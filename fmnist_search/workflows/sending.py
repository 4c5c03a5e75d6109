"""Delivery of the outbox to MLflow, during a workflow and afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import closing

from fmnist_search.errors import UserError
from fmnist_search.files import private_files
from fmnist_search.tracking.artifact_locations import check_project
from fmnist_search.tracking.connection import short_timeouts, store_errors
from fmnist_search.tracking.delivery import WriteEvent
from fmnist_search.tracking.delivery_process import DeliveryProcess
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.renderers import RENDERERS
from fmnist_search.tracking.sender import Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.writer import MlflowWriter
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workspace import Workspace

MANY_WORKERS = 8
"""The events of so many workers are sent by a process of its own: a thread would slow the driver of a study down."""
SYNC_TIMEOUT = 15.0
"""Seconds without progress after which the store counts as down."""


@contextlib.contextmanager
def open_sender(
    workspace: Workspace, mlflow_store: MlflowStore, callback: StudyCallback, workers: int = 1
) -> Iterator[Sender]:
    """Yield a sender to MLflow. It sends what an earlier process left in the outbox before anything else.

    For many workers it is a process. For few it is a thread: a process takes seconds to start, and has the memory of
    MLflow, torch and matplotlib once more.

    Raises:
        UserError: if the project was moved or copied, so that artifacts would be written to its old folder.
    """
    check_project(workspace.tracking_uri)
    outbox = Outbox(workspace.outbox_path, workspace.tracking_uri)
    deliver: WriteEvent | DeliveryProcess = MlflowWriter(mlflow_store.client, outbox, RENDERERS)
    if workers >= MANY_WORKERS:
        deliver = DeliveryProcess(outbox, workspace.tracking_uri, callback.on_message)
    with private_files(), short_timeouts(), Sender(outbox, deliver, callback.on_message) as sender:
        yield sender


def sync(*, forget: bool = False, workspace: Workspace | None = None) -> int:
    """Send pending and rejected events to MLflow; return the number of events that were sent.

    With `forget`, rejected events are dropped instead.

    Raises:
        UserError: if MLflow is unreachable, or rejects events.
    """
    workspace = workspace or Workspace.resolve()
    if not workspace.outbox_path.exists():
        return 0
    with store_errors(workspace.tracking_uri):
        mlflow_store = MlflowStore(workspace.tracking_uri, "fmnist-search")
        with closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
            if forget:
                outbox.discard_rejected()
            else:
                outbox.retry_rejected()
            events = outbox.pending_count()
            with open_sender(workspace, mlflow_store, StudyCallback()) as sender:
                delivered, problem = sender.flush(SYNC_TIMEOUT), sender.problem
            rejected = outbox.rejected_counts()
    if not delivered:
        raise UserError(f"sync: {problem}; nothing is lost, run it again once that is over")
    if rejected:
        raise UserError(
            *(f"sync: MLflow rejects {count} events: {reason}" for reason, count in rejected.items()),
            "sync: fix the causes and run it again; if MLflow has lost the runs, write those of a study again with "
            "--rebuild STUDY; or drop these events with --forget",
        )
    return events
