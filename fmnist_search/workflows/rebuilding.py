"""The record of a study in MLflow, written anew from Optuna's storage and the outbox.

It is needed after MLflow's database was replaced by an older copy, which lacks runs that Optuna and the outbox name.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.errors import UserError
from fmnist_search.reporting.training_note import training_note
from fmnist_search.results.objectives import known_costs
from fmnist_search.results.study import TrialRecord
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import displayed_names
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.run_ref import RunRef
from fmnist_search.tracking.store import FinishedRun, MlflowStore
from fmnist_search.tracking.study_runs import open_study_run
from fmnist_search.tracking.training_run_logger import RECIPE_FILE, RUN_STATUS, parameter_values, training_tags
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.interruption import Interruption
from fmnist_search.workflows.jobs import JobContext
from fmnist_search.workflows.lookup import load_study, summarize_stored
from fmnist_search.workflows.sending import open_sender
from fmnist_search.workflows.study.run_logging import StudyRunLogger
from fmnist_search.workspace import Workspace


@dataclass
class RebuiltRecord:
    """The record of a study: its run, and how many runs of trials MLflow still had, the outbox holds, and were created.

    `events` is the number of events that were sent; `rejected` are those of other runs that MLflow has lost.
    """

    run_id: str
    kept: int = 0
    from_outbox: int = 0
    from_optuna: int = 0
    events: int = 0
    rejected: int = 0


def rebuild(
    name: str, *, workspace: Workspace | None = None, callback: StudyCallback | None = None, plots: bool = True
) -> RebuiltRecord:
    """Write the run of a study and those of its trials again, as far as MLflow lacks them, and send the outbox.

    A run whose events are all in the outbox becomes what it was. Of any other, Optuna's storage has recipe, outcome and
    the validation accuracy of each epoch. Runs of finalists and registered models are not in it.

    Raises:
        UserError: if there is no such study, or MLflow is unreachable.
    """
    workspace, callback = workspace or Workspace.resolve(), callback or StudyCallback()
    study_store = load_study(workspace, name)
    with store_errors(workspace.tracking_uri):
        mlflow_store = MlflowStore(workspace.tracking_uri, study_store.config.experiment)
        study_run = open_study_run(mlflow_store, name, study_store.run_id)
        record = RebuiltRecord(study_run.run_id)
        with closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
            if study_run.replaced_id:
                outbox.remember_run(study_run.replaced_id, study_run.run_id)
            names = displayed_names(study_store.config, (trial.recipe for trial in study_store.trial_records()))
            recreated = {
                trial.run_id: key
                for trial in study_store.trial_records()
                if trial.run_id and (key := _rebuild_trial(mlflow_store, outbox, study_store, trial, names, record))
            }
            study_store.run_id = study_run.run_id
            outbox.retry_rejected()
            record.events = outbox.pending_count()
            with open_sender(workspace, mlflow_store, callback) as sender:
                context = JobContext(sender, callback, Interruption(), plots)
                if not sender.flush(context.flush_timeout):
                    raise UserError(f"sync --rebuild: {sender.problem}; nothing is lost, run it again")
                new_ids = {run_id: outbox.run_id(key) or run_id for run_id, key in recreated.items()}
                study_store.remember_rebuilt_runs(new_ids)
                run = RunLogger.existing(sender, study_run.run_id)
                run.log_text("study.toml", study_store.config.to_toml())
                StudyRunLogger(run, study_store, context, 0.0).close(summarize_stored(workspace, study_store))
                context.flush()
            record.rejected = sum(outbox.rejected_counts().values())
    return record


def _rebuild_trial(
    mlflow_store: MlflowStore,
    outbox: Outbox,
    study_store: StudyStore,
    trial: TrialRecord,
    names: Sequence[str],
    record: RebuiltRecord,
) -> str | None:
    """Make sure that MLflow has the run of a trial, or return its key if the events of the outbox will create it."""
    assert trial.run_id
    key = outbox.run_key(trial.run_id)
    run_id = outbox.run_id(key) or RunRef.from_stored(trial.run_id).id
    run = mlflow_store.find_run(run_id) if run_id else None
    if run and run.is_active:
        if run.tags.get(tag_names.PARENT_RUN_ID) != record.run_id:
            mlflow_store.set_tags(run.run_id, {tag_names.PARENT_RUN_ID: record.run_id})
        record.kept += 1
        return None
    if outbox.creates(key):
        outbox.forget_run(key)
        record.from_outbox += 1
        return key
    create_run_of_trial(mlflow_store, outbox, study_store, trial, names, record.run_id)
    record.from_optuna += 1
    return None


def create_run_of_trial(
    mlflow_store: MlflowStore,
    outbox: Outbox,
    study_store: StudyStore,
    trial: TrialRecord,
    names: Sequence[str],
    parent_id: str,
) -> str:
    """Write the run of a trial anew from Optuna's storage, let the trial name it, and return its id.

    The arguments are those of `finished_run`.
    """
    assert trial.run_id
    experiment_id = mlflow_store.client.get_run(parent_id).info.experiment_id
    new_id = mlflow_store.create_finished_run(experiment_id, finished_run(study_store.config, trial, names, parent_id))
    outbox.remember_run(outbox.run_key(trial.run_id), new_id)
    study_store.remember_rebuilt_runs({trial.run_id: new_id})
    return new_id


def finished_run(config: StudyConfig, trial: TrialRecord, names: Sequence[str], parent_id: str) -> FinishedRun:
    """Return the run of a trial as far as Optuna's storage has it, with the hyperparameters `names`."""
    recipe = trial.recipe
    ended_ms = int(1000 * (trial.ended_at or time.time()))
    summary: Mapping[str, float] = {
        metric_names.PARAMETER_COUNT: trial.parameters,
        metric_names.TRIAL_SECONDS: trial.seconds,
        **({metric_names.BEST_VAL_ACCURACY: max(trial.curve)} if trial.curve else {}),
        **{metric_names.COSTS[metric]: value for metric, value in known_costs(trial).items()},
        **({metric_names.cost(trial.cost.metric): trial.cost.value} if trial.cost else {}),
    }
    return FinishedRun(
        name=f"{trial.number:03d} {recipe.label}",
        tags={
            tag_names.PARENT_RUN_ID: parent_id,
            tag_names.KIND: tag_names.TRIAL_RUN,
            tag_names.STUDY: config.name,
            tag_names.TRIAL: str(trial.number),
            **training_tags(recipe, {}),
            tag_names.STATE: trial.state.value,
            tag_names.REASON: trial.reason or "",
            tag_names.EPOCHS: str(trial.epochs),
            tag_names.REBUILT: "from Optuna's storage",
            tag_names.NOTE: training_note(f"Trial {trial.number} of the study '{config.name}'", recipe),
        },
        params=parameter_values(recipe, names),
        metrics=[
            *((metric_names.VAL_ACCURACY, value, ended_ms, epoch) for epoch, value in enumerate(trial.curve, 1)),
            *((key, float(value), ended_ms, trial.epochs) for key, value in summary.items()),
        ],
        texts={RECIPE_FILE: recipe_to_toml(recipe)},
        status=RUN_STATUS[trial.state],
    )
