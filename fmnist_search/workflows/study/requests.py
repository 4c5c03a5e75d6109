"""What other processes ask of the search of a study: to stop, to stop one trial, or to try a recipe next."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.config.space import NOT_SEARCHABLE
from fmnist_search.errors import UserError
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.results.study import StopReason
from fmnist_search.results.training import TrialState
from fmnist_search.search.lease import Driver, current_driver
from fmnist_search.search.requests import Request, RequestInbox, RequestKind, add_request
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import start_network, start_params
from fmnist_search.workflows.lookup import load_study
from fmnist_search.workflows.study.stopping import current_stop_reason
from fmnist_search.workspace import Workspace

if TYPE_CHECKING:
    from fmnist_search.workflows.interruption import Interruption

STOPPED = "was stopped by `fmnist-search stop`"
"""Why a trial ended that another process has stopped."""

CHECK_SECONDS = 0.1
"""Seconds between two looks for requests: epochs may be shorter."""


class StudyRequests:
    """The requests to the search of this process. They are looked for after each epoch and before each new trial.

    A request to stop is passed on to `interruption`.
    """

    def __init__(self, inbox: RequestInbox, study: str, interruption: Interruption, on_message: Callable[[str], None]):
        self._inbox = inbox
        self._study = study
        self._interruption = interruption
        self._on_message = on_message
        self.stopped_trials: set[int] = set()
        """Numbers of trials that are to end, or have ended."""
        self._recipes: list[Request] = []
        self._checked_at = -math.inf

    def check(self, *, at_once: bool = False) -> None:
        """Look for requests, unless this was done a moment ago, and meet those to stop the search or a trial."""
        if not at_once and time.monotonic() - self._checked_at < CHECK_SECONDS:
            return
        self._checked_at = time.monotonic()
        self._recipes = []
        for request in self._inbox.read():
            if request.kind is RequestKind.ENQUEUE:
                self._recipes.append(request)
                continue
            if request.kind is RequestKind.STOP:
                self._on_message(f"{self._study}: stops after its running epochs, as `fmnist-search stop` asks")
                self._interruption.request()
            else:
                self.stopped_trials.add(int(request.content["trial"]))
            with contextlib.suppress(SQLAlchemyError, UserError):  # then it is met twice, which changes nothing
                self._inbox.remove(request)

    def enqueue_recipes(self, study_store: StudyStore) -> None:
        """Queue the recipes that were asked for as trials of the study."""
        self.check(at_once=True)
        for request in self._recipes:
            try:
                message = study_store.enqueue_requested(**request.content)
            except UserError as error:  # the study file has changed since
                message = f"{error}; it is left out"
            self._on_message(f"{self._study}: {message}")
            with contextlib.suppress(SQLAlchemyError, UserError):  # it is known by its key, so that it is queued once
                self._inbox.remove(request)


# ------------------------------------------------------------------------------------- the other processes


@dataclass(frozen=True)
class QueuedRecipe:
    """A recipe that was queued: where it lies outside the space, who searches the study, and whether a limit is met."""

    study: str
    outside: tuple[str, ...]
    driver: Driver | None
    stop_reason: StopReason


def enqueue(
    source: str, values: Mapping[str, Value], *, study: str | None = None, workspace: Workspace | None = None
) -> QueuedRecipe:
    """Let a recipe, or some values of one by dotted name, be the next new trial of a study, by default of the latest.

    A search that runs takes it before it asks its sampler again, otherwise the next one does. The sampler chooses the
    values that are missing.

    Raises:
        UserError: if there is no such study, the values make no recipe, they lie outside the space and the study
            refuses that (`start.outside`), or its budget refuses the network.
    """
    workspace = workspace or Workspace.resolve()
    study_store = load_study(workspace, study)
    config = study_store.config
    try:
        _, outside = start_params(config, source, values)
        if config.budget.max_mult_adds is not None:
            from fmnist_search.workflows.study.network_budget import check_start

            check_start(config, source, start_network(config, values))
    except UserError as error:
        raise UserError(*(line.removeprefix("start.recipes: ") for line in error.lines)) from None
    content = {"source": source, "given": dict(values), "key": uuid.uuid4().hex}
    add_request(workspace.storage_url, config.name, RequestKind.ENQUEUE, content)
    driver = current_driver(workspace.storage_url, config.name)
    return QueuedRecipe(config.name, tuple(outside), driver, current_stop_reason(study_store))


def check_searchable(values: Mapping[str, Value]) -> None:
    """Check that values which a user gives one by one are not those that all trials of a study share.

    Raises:
        UserError: if one is, with a line for each.
    """
    if fixed := [name for name in values if name in NOT_SEARCHABLE]:
        raise UserError(*(f"--set {name}: is the same in all trials of a study; leave it out" for name in fixed))


def request_stop(workspace: Workspace, driver: Driver) -> None:
    """Ask the driver of a study to stop after its running epochs, wherever it runs."""
    add_request(workspace.storage_url, driver.study, RequestKind.STOP, {}, driver.session)


def request_stop_of_trial(workspace: Workspace, study: str, number: int) -> None:
    """Ask the driver of a study to end a trial as a pruned one: after its running epoch, or at once if it is paused.

    Raises:
        UserError: if there is no such study, nobody searches it, or the trial is neither being trained nor paused.
    """
    study_store, driver = load_study(workspace, study), current_driver(workspace.storage_url, study)
    if driver is None:
        raise UserError(f"study {study!r}: is not running, so no trial of it can be stopped")
    running = [trial.number for trial in study_store.running_trials(driver.started_at)]
    running += [trial.number for trial in study_store.trial_records() if trial.state is TrialState.PAUSED]
    if number not in running:
        remedy = (
            f"running or paused are {', '.join(map(str, sorted(running)))}"
            if running
            else "no trial is running at the moment"
        )
        raise UserError(f"--trial {number}: is not running in study {study!r}; {remedy}")
    content = {"trial": number}
    add_request(workspace.storage_url, study, RequestKind.STOP_TRIAL, content, driver.session)
