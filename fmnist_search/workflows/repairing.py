"""Finds where Optuna's storage and MLflow disagree about a study, and mends it.

Optuna's storage is right about trials, and the registry about versions. A search does this once at its start, beside
its trials; `doctor --study` does it for a study that does not run.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from fmnist_search.errors import UserError
from fmnist_search.processes import process_identity
from fmnist_search.registry.aliases import decide_alias
from fmnist_search.registry.study_versions import StudyVersion, study_versions
from fmnist_search.results.study import TrialRecord
from fmnist_search.search.lease import Lease, current_driver
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import displayed_names
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_listing import ListedRun, complete_run, end_run, list_runs
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.training_run_logger import RUN_STATUS
from fmnist_search.training.trial_checkpoints import TrialCheckpoints
from fmnist_search.workflows.agreement import (
    TRAINED_STATES,
    Disagreement,
    Finding,
    StudyListing,
    compare,
    compare_versions,
)
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.garbage import best_records
from fmnist_search.workflows.lookup import load_study
from fmnist_search.workflows.rebuilding import create_run_of_trial, finished_run
from fmnist_search.workflows.sending import SYNC_TIMEOUT, open_sender
from fmnist_search.workspace import Workspace

REPAIRED_BY_SEARCHES = (
    Disagreement.RUN_OPEN,
    Disagreement.RUN_WITHOUT_TRIAL,
    Disagreement.POINTS_MISSING,
)
"""What a search mends at its start: what a process that is killed can leave."""

REPAIR_ROUNDS = 2
"""A trial that is set right may have a run that differs only then."""


@dataclass
class Agreement:
    """What was found of a study and remains, and what was mended, each with what was done."""

    study: str
    remaining: list[Finding] = field(default_factory=list)
    repaired: list[tuple[Finding, str]] = field(default_factory=list)


def check_agreement(
    study: str, *, workspace: Workspace | None = None, repair: bool = False, callback: StudyCallback | None = None
) -> Agreement:
    """Compare the trials of a study with its runs, its files and its versions; with `repair`, mend what differs.

    If MLflow is out of reach, that is a finding, and only the rest is compared.

    Raises:
        UserError: if there is no such study, or it is to be repaired while a process searches or promotes it.
    """
    workspace, callback = workspace or Workspace.resolve(), callback or StudyCallback()
    study_store, agreement = load_study(workspace, study), Agreement(study)
    with contextlib.ExitStack() as stack:
        driver = None
        if repair:
            stack.enter_context(_lease(workspace, study_store))
        elif current := current_driver(workspace.storage_url, study):
            driver = current.process
        outbox = stack.enter_context(closing(Outbox(workspace.outbox_path, workspace.tracking_uri)))
        try:
            with store_errors(workspace.tracking_uri):
                mlflow_store = _connect(workspace, study_store)
                if repair and mlflow_store and outbox.has_pending:
                    agreement.repaired += _deliver(workspace, mlflow_store, outbox, callback)
                _check(_Stores(workspace, study_store, mlflow_store, outbox, driver), agreement, repair=repair)
        except UserError as error:
            unreachable = Finding(Disagreement.MLFLOW_UNREACHABLE, "MLflow", str(error), remedy="then run this again")
            _check(_Stores(workspace, study_store, None, outbox, driver), agreement, repair=repair)
            agreement.remaining.append(unreachable)
    return agreement


def make_stores_agree(
    workspace: Workspace,
    study_store: StudyStore,
    mlflow_store: MlflowStore,
    outbox: Outbox,
    on_message: Callable[[str], None],
    *,
    is_searched: bool = True,
) -> None:
    """Mend what killed processes have left, for the process that searches the study (or has archived it).

    Only runs that were left open are compared, so that it is as fast for a study of many trials. If MLflow is out of
    reach, it says so and leaves everything as it is.
    """
    stores = _Stores(workspace, study_store, mlflow_store, outbox, process_identity() if is_searched else None)
    try:
        with store_errors(workspace.tracking_uri):
            findings = stores.compare_open_runs()
            repairs = stores.repair(finding for finding in findings if finding.kind in REPAIRED_BY_SEARCHES)
    except UserError as error:
        on_message(f"{study_store.config.name}: its runs were not compared with its trials ({error})")
        return
    for finding, action in repairs:
        if not stores.goes_on(finding.trial):  # its run goes on too
            on_message(f"{study_store.config.name}: {finding}: {action}")


def _check(stores: _Stores, agreement: Agreement, *, repair: bool) -> None:
    """Add what remains, and with `repair` what was mended."""
    findings = stores.compare()
    for _ in range(REPAIR_ROUNDS if repair else 0):
        repaired = stores.repair(finding for finding in findings if finding.is_repairable)
        agreement.repaired += repaired
        findings = stores.compare() if repaired else findings
    agreement.remaining += findings


def _lease(workspace: Workspace, study_store: StudyStore) -> Lease:
    """Return the lease of a study, so that nothing searches it while it is repaired."""
    config = study_store.config
    times = config.execution.heartbeat_seconds, config.execution.lease_seconds
    return Lease.acquire(open_storage(workspace.storage_url, create=False), config.name, *times)


def _connect(workspace: Workspace, study_store: StudyStore) -> MlflowStore | None:
    """Return the store with the runs of a study; None if the study has none."""
    return MlflowStore(workspace.tracking_uri, study_store.config.experiment) if study_store.run_id else None


def _deliver(
    workspace: Workspace, mlflow_store: MlflowStore, outbox: Outbox, callback: StudyCallback
) -> Iterator[tuple[Finding, str]]:
    """Send MLflow the events that it has not received."""
    events = outbox.pending_count()
    with open_sender(workspace, mlflow_store, callback) as sender:
        if sender.flush(SYNC_TIMEOUT):
            yield _pending_finding(events), "sent"


def _pending_finding(events: int, remedy: str = "") -> Finding:
    text = f"MLflow has not received {events} event{'s' * (events != 1)}"
    return Finding(Disagreement.EVENTS_PENDING, "outbox", text, remedy=remedy)


class _Stores:
    """The stores of a study: Optuna's, MLflow's (None if it is out of reach or has no run), and the files."""

    def __init__(
        self,
        workspace: Workspace,
        study_store: StudyStore,
        mlflow_store: MlflowStore | None,
        outbox: Outbox,
        driver: str | None,
    ):
        self._workspace = workspace
        self._study_store = study_store
        self._mlflow_store = mlflow_store
        self._outbox = outbox
        self._checkpoints = TrialCheckpoints(workspace.checkpoints_folder(study_store.config.name))
        self._driver = driver
        self._name = study_store.config.name
        self._listing = StudyListing(())
        self._versions: list[StudyVersion] = []

    def compare(self) -> list[Finding]:
        """Return what differs now."""
        run_id, store = self._study_store.run_id, self._mlflow_store
        study_run = store.find_run(run_id) if store and run_id else None
        is_tracked = study_run is not None and study_run.is_active
        self._listing = self._list(store if is_tracked else None)
        self._versions = study_versions(store.client, self._name) if store else []
        findings = compare(self._listing, tracked=is_tracked) + compare_versions(self._versions)
        if store and not is_tracked:
            remedy = f"`fmnist-search sync --rebuild {shlex.quote(self._name)}` writes its runs again"
            text = f"MLflow has no run {run_id}, below which are the runs of its trials"
            findings.append(Finding(Disagreement.STUDY_RUN_MISSING, f"study {self._name!r}", text, remedy=remedy))
        if events := self._outbox.pending_count() + sum(self._outbox.rejected_counts().values()):
            findings.append(_pending_finding(events, "`fmnist-search sync` sends them, or says why it cannot"))
        return findings

    def goes_on(self, number: int | None) -> bool:
        """Return whether the trial of this number waits to go on, by the last comparison."""
        return any(trial.number == number and not trial.state.is_final for trial in self._listing.trials)

    def compare_open_runs(self) -> list[Finding]:
        """Return what differs between the trials and those runs that another process has left RUNNING.

        If there are none, the trials are not read.
        """
        store = self._mlflow_store
        runs = list_runs(store, self._study_store.run_id or "", only_open=True) if store else ()
        if not any(run.status == "RUNNING" and not self._is_own(run) for run in runs):
            return []
        self._listing = self._list(store, only_open=True)
        return compare(self._listing)

    def _is_own(self, run: ListedRun) -> bool:
        if self._driver is None:
            return False
        return run.kind == tag_names.STUDY_RUN or run.tags.get(tag_names.PROCESS) == self._driver

    def _list(self, store: MlflowStore | None, *, only_open: bool = False) -> StudyListing:
        """List trials before events and runs: what a trial has sent by then is found in one of the two."""
        listed_ms = time.time() * 1000
        open_trials = [trial.number for trial in self._study_store.running_trials(0.0)]
        trials = self._study_store.trial_records()
        pending = self._outbox.waiting_runs()
        needed = best_records(trials, self._study_store.config.finalists.recipes)
        return StudyListing(
            trials=trials,
            open_trials=open_trials,
            runs=list_runs(store, self._study_store.run_id or "", only_open=only_open) if store else (),
            needed_weights=[trial.number for trial in needed],
            stored_weights=[
                trial.number for trial in needed if self._workspace.weights_path(self._name, trial.number).is_file()
            ],
            checkpoints=self._checkpoints.numbers(),
            pending=pending,
            listed_ms=listed_ms,
            driver=self._driver,
        )

    @functools.cached_property
    def _parameter_names(self) -> list[str]:
        trials = self._study_store.trial_records()
        return displayed_names(self._study_store.config, (trial.recipe for trial in trials))

    def repair(self, findings: Iterable[Finding]) -> list[tuple[Finding, str]]:
        """Mend what was found by the last comparison; return each finding with what was done."""
        return [(finding, action) for finding in findings if (action := self._repair(finding))]

    def _repair(self, finding: Finding) -> str:
        """Mend what a finding names; return what was done, empty if nothing can be."""
        trial = next((trial for trial in self._listing.trials if trial.number == finding.trial), None)
        run = next((run for run in self._listing.runs if run.run_id == finding.run_id), None)
        match finding.kind:
            case Disagreement.RUN_MISSING if trial and self._mlflow_store:
                parent_id = self._study_store.run_id or ""
                create_run_of_trial(
                    self._mlflow_store, self._outbox, self._study_store, trial, self._parameter_names, parent_id
                )
                return "written again from Optuna's storage"
            case Disagreement.TRIAL_OPEN:
                return self._recover(finding.trial)
            case Disagreement.CHECKPOINT_LEFT if trial:
                self._checkpoints.remove(trial.number)
                return "removed"
            case Disagreement.VERSION_UNDECIDED:
                return self._decide(finding)
            case _ if run and self._mlflow_store:
                return self._repair_run(self._mlflow_store, finding, run, trial)
        return ""

    def _repair_run(self, store: MlflowStore, finding: Finding, run: ListedRun, trial: TrialRecord | None) -> str:
        if finding.kind is Disagreement.RUN_WITHOUT_TRIAL:
            end_run(store, run.run_id, "KILLED", "interrupted", "no trial in Optuna's storage has this run")
            return "ended as KILLED"
        if trial is None:
            end_run(store, run.run_id, "KILLED", "interrupted", "its process has ended")
            return "ended as KILLED"
        status = RUN_STATUS[trial.state]
        if trial.state not in TRAINED_STATES:
            end_run(store, run.run_id, status, trial.state.value, trial.reason or "")
            return f"set to {status}"
        finished = finished_run(self._study_store.config, trial, self._parameter_names, self._study_store.run_id or "")
        restored = complete_run(store, run, finished, int(1000 * (trial.ended_at or time.time())))
        added = f", with {restored} point{'s' * (restored != 1)} from Optuna's storage" if restored else ""
        return f"the run is {status}{added}"

    def _recover(self, number: int | None) -> str:
        """Let a trial that was left running wait to go on, or tell Optuna its result if its training has ended."""

        def find_outcome(run_key: str) -> Mapping[str, Any] | None:
            progress = self._outbox.progress(run_key)
            return progress.outcome if progress else None

        self._study_store.recover(find_outcome)  # all trials at once: there are none left for a second call
        trial = next((trial for trial in self._study_store.trial_records() if trial.number == number), None)
        is_final = trial is not None and trial.is_final
        return "Optuna has its result now" if is_final else "it goes on with the next search"

    def _decide(self, finding: Finding) -> str:
        """Decide about a version that its promotion left undecided."""
        version = next(version for version in self._versions if version.uri == finding.subject)
        assert self._mlflow_store
        decision = decide_alias(self._mlflow_store.client, version.model, str(version.number))
        return f"it is {decision.alias}"
