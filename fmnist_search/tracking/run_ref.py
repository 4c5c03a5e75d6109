"""How a run is referred to before and after MLflow has created it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmnist_search.results.study import TrialRecord
from fmnist_search.tracking.outbox_file import OutboxError, warn_once
from fmnist_search.tracking.outbox_reader import read_outbox
from fmnist_search.workspace import Workspace


@dataclass(frozen=True)
class RunRef:
    """A reference to a run: its key, by which events name it from the start, and its id once MLflow has created it.

    The key of a run that existed when it was first referred to is its id.
    """

    key: str
    id: str | None = None

    @classmethod
    def from_stored(cls, text: str) -> RunRef:
        """Return the reference that `stored` wrote. A key holds a slash, an id of MLflow never does."""
        return cls(text) if "/" in text else cls(text, text)

    @property
    def stored(self) -> str:
        """The text that a trial keeps in Optuna: the id, or the key as long as there is no id."""
        return self.id or self.key


def resolve_run_ids(workspace: Workspace, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials with the ids of their runs, as far as MLflow has created them.

    A trial that ended before MLflow had its run keeps the key of the run; the outbox knows the id since. If the outbox
    cannot be read, such a trial has no run, and a warning is logged.
    """
    refs = [RunRef.from_stored(trial.run_id) if trial.run_id else None for trial in trials]
    if all(ref is None or ref.id for ref in refs):
        return list(trials)
    ids = _ids_of_keys(workspace, [ref.key for ref in refs if ref and not ref.id])
    return [
        dataclasses.replace(trial, run_id=ids.get(ref.key)) if ref and not ref.id else trial
        for trial, ref in zip(trials, refs, strict=True)
    ]


def _ids_of_keys(workspace: Workspace, keys: Sequence[str]) -> Mapping[str, str | None]:
    try:
        with read_outbox(workspace.outbox_path, workspace.tracking_uri) as outbox:
            return {key: outbox.run_id(key) for key in keys}
    except OutboxError as error:
        warn_once(error)
        return {}
