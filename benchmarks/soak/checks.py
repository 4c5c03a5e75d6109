"""The checks at the end of a soak test: of all its studies, its commands, its processes and its files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from mlflow import MlflowClient

from benchmarks.soak.champion import check_champion
from benchmarks.soak.commands import CommandRunner
from benchmarks.soak.invariants import Invariant, check_study
from benchmarks.soak.project import STUDY, Project
from benchmarks.soak.run import SECOND_TRIALS, Soak
from benchmarks.soak.stores import read_runs, read_trials
from fmnist_search.results.training import TrialState
from fmnist_search.search.lease import current_driver
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking import tag_names

PROCESS_SECONDS = 20.0
"""How long the processes of commands that were killed have to end."""
DOCTOR_SECONDS = 120.0


def check_all(soak: Soak) -> list[Invariant]:
    """Return all invariants of a soak test that has ended."""
    project = soak.project
    found = [
        Invariant.check("no process is left", _remaining_processes(project.commands)),
        Invariant.check("every command ended as expected, without a traceback", soak.problems),
        Invariant.check("no study has a driver", _remaining_drivers(project, [STUDY, *soak.second_studies])),
        Invariant.check("doctor finds nothing", _run_doctor(project, [STUDY, *soak.second_studies])),
    ]
    budgets = {STUDY: soak.budgets, **{name: [SECOND_TRIALS] for name in soak.second_studies}}
    for study, ended_with in budgets.items():
        prefix = "" if study == STUDY else f"{study}: "
        found += [
            Invariant(prefix + invariant.statement, invariant.violations)
            for invariant in _check_one_study(project, study, ended_with)
        ]
    found.append(Invariant.check("MLflow has got every event", _check_outbox(project)))
    return found


def _check_one_study(project: Project, name: str, budgets: list[int]) -> Iterator[Invariant]:
    """Yield the invariants of a study; a study that cannot be read breaks one."""
    try:
        study = StudyStore.load(project.storage_url, name)
        trials, records = read_trials(project.storage_url, name), study.trial_records()
        runs = [run for run in read_runs(project.mlflow.database) if run.tags.get(tag_names.STUDY) == name]
        yield from check_study(trials, records, runs, budgets[-1])
        yield from check_champion(study, runs, MlflowClient(project.mlflow.url), budgets)
        yield Invariant.check("no checkpoint of a trial is left", _remaining_checkpoints(project, name))
        yield Invariant.check(
            "each completed trial has its weights",
            [
                f"trial {record.number}"
                for record in records
                if record.state is TrialState.COMPLETED
                and record.duplicate_of is None
                and not project.workspace.weights_path(name, record.number).exists()
            ],
        )
    except Exception as error:
        yield Invariant.check("the study can be read", [repr(error)])


def _remaining_processes(commands: CommandRunner) -> Iterator[str]:
    deadline = time.monotonic() + PROCESS_SECONDS
    while (left := list(commands.processes())) and time.monotonic() < deadline:
        time.sleep(0.5)
    for process in left:
        with contextlib.suppress(Exception):
            yield f"process {process.pid}: {' '.join(process.cmdline())}"


def _remaining_checkpoints(project: Project, study: str) -> Iterator[str]:
    folder = project.workspace.checkpoints_folder(study)
    for path in sorted(folder.rglob("*")) if folder.exists() else ():
        if path.is_file():
            yield str(path.relative_to(project.workdir))


def _remaining_drivers(project: Project, studies: Sequence[str]) -> Iterator[str]:
    for study in studies:
        if driver := current_driver(project.storage_url, study):
            yield f"{study}: {driver}"


def _run_doctor(project: Project, studies: Sequence[str]) -> Iterator[str]:
    for study in studies:
        doctor = project.commands.start("doctor", "doctor", "--study", study)
        doctor.process.wait(DOCTOR_SECONDS)
        if doctor.exit_code != 0:
            yield f"{study}: exit code {doctor.exit_code}: {doctor.text}"


def _check_outbox(project: Project) -> Iterator[str]:
    pending, rejected = project.pending_events()
    if pending:
        yield f"{pending} events are pending"
    for reason, count in rejected.items():
        yield f"{count} events were rejected: {reason}"
