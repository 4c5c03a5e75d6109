"""The session of trainings without a study: where they are recorded, how they run, and the interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.errors import UserError
from fmnist_search.execution.backend import make_backend
from fmnist_search.execution.capacity import worker_count
from fmnist_search.files import private_files
from fmnist_search.recipe.execution import MEMORY_FORMATS, Execution, ExecutionSettings
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, Stopper, TrialResult, TrialState
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.provenance import environment
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.stored_runs import ENVIRONMENT_FILE
from fmnist_search.tracking.tensorboard import TensorBoardWriter
from fmnist_search.tracking.training_artifacts import log_training_plots
from fmnist_search.tracking.training_run_logger import TrainingRunLogger
from fmnist_search.training.callbacks import CallbackList, CheckpointWriter, TrainingCallback
from fmnist_search.training.devices import resolve_execution
from fmnist_search.training.loop import ProgressCallback
from fmnist_search.training.trial import run_trial
from fmnist_search.user_account import complete_environment
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.interruption import interrupt_on_signals
from fmnist_search.workflows.jobs import JobContext, Requeue, RetryingJob, TrackedJob, not_started, run_jobs
from fmnist_search.workflows.sending import open_sender
from fmnist_search.workflows.settings import RunOptions
from fmnist_search.workflows.testing import record_test
from fmnist_search.workflows.training_files import (
    BEST_FILE,
    LAST_FILE,
    artifact_files,
    seed_folder,
    store_files,
    tensorboard_folder,
)
from fmnist_search.workflows.training_registration import register_training
from fmnist_search.workspace import Workspace, check_name


class SeedJob(RetryingJob):
    """One of several trainings, whose weights become artifacts of its run, and are copied to the folder `output`.

    With `test_source`, its weights are evaluated on the test images from there.
    """

    def __init__(
        self,
        *arguments: Any,
        output: Path | None = None,
        tensorboard: Path | None = None,
        test_source: DataSource | None = None,
    ):
        super().__init__(*arguments)
        self._test_source = test_source
        self._output = output
        self._writer = TensorBoardWriter(tensorboard, self.recipe, self.images.classes) if tensorboard else None

    def on_epoch(self, report: EpochReport) -> Decision:
        """Log an epoch, for TensorBoard as well."""
        if self._writer:
            self._writer.log_epoch(report)
        return super().on_epoch(report)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Handle the result."""
        super().on_result(result, seconds)
        if self._writer and result.confusion:
            self._writer.log_confusion(result.epochs[-1], result.confusion)
        if result.state is TrialState.COMPLETED and result.weights and result.last_weights:
            files = artifact_files({BEST_FILE: result.weights, LAST_FILE: result.last_weights}, result)
            store_files(files, self.run, self.recipe, self._output)
            if self._test_source and self.result:
                plots = self._context.plots
                test = record_test(self.run, self.recipe, result.weights, self._test_source, plots=plots)
                self.result = dataclasses.replace(self.result, test=test)


@dataclass
class TrainingSession:
    """Trainings without a study, with all that they share."""

    workspace: Workspace
    source: DataSource
    mlflow_store: MlflowStore
    execution: Execution
    context: JobContext

    def load_images(self, recipe: Recipe) -> Images:
        """Return the images of a recipe, on the device."""
        return load_images(recipe.data, self.source, self.execution.device)

    def make_job(
        self, name: str, recipe: Recipe, images: Images, tags: Mapping[str, str], stopper: Stopper
    ) -> TrackedJob:
        """Open the run of a single training and return its job."""
        tags = {tag_names.KIND: tag_names.TRAINING_RUN, tag_names.DEVICE: self.execution.device, **tags}
        run = self.mlflow_store.start_training_run(self.context.sender, name, recipe, tags)
        run.log_dataset(images, vars(recipe.data))
        self._log_environment(run)
        return TrackedJob(name, recipe, images, run, self.context, stopper)

    def run_single(
        self,
        job: TrackedJob,
        run_options: RunOptions,
        progress_callback: ProgressCallback | None,
        resume_from: Mapping[str, Any] | None = None,
    ) -> TrialResult:
        """Run a job in this process; log its weights, and save a checkpoint after every epoch."""
        folder = self.workspace.training_folder(job.run.run_key)
        checkpoint_writer = CheckpointWriter(folder, job.recipe, job.images, self.execution)
        callbacks: list[TrainingCallback] = [checkpoint_writer]
        if run_options.tensorboard:
            board = tensorboard_folder(run_options.tensorboard, job.name, job.run.run_key)
            callbacks.append(TensorBoardWriter(board, job.recipe, job.images.classes))
        result = _run_inline(job, self.execution, CallbackList(callbacks), progress_callback, resume_from)
        state = checkpoint_writer.last_checkpoint().state if checkpoint_writer.has_checkpoint else resume_from
        if state:
            weights = {BEST_FILE: state["weights"], LAST_FILE: state["training"]["averaged"]}
            store_files(artifact_files(weights, result), job.run, job.recipe, run_options.output)
            if run_options.test and result.state is TrialState.COMPLETED:
                test = record_test(job.run, job.recipe, weights[BEST_FILE], self.source, plots=self.context.plots)
                result = dataclasses.replace(result, test=test)
            if run_options.register and result.state is TrialState.COMPLETED:
                kept, store = weights[BEST_FILE], self.mlflow_store
                version = register_training(store, job, kept, run_options, self.context, self.source)
                tested = f"{version.test.value:.2%} of the {version.test.images:,} test images"
                self.context.callback.on_message(f"{version.model} {version.verdict}; {tested}")
                result = dataclasses.replace(result, registered=version.address)
            if self.context.plots:
                values = (job.name, job.recipe, result.epochs, weights[LAST_FILE], job.images)
                self.context.sender.run_when_idle(partial(log_training_plots, job.run, *values))
        self.context.flush()
        return result

    @contextlib.contextmanager
    def open_group_run(self, name: str, tags: Mapping[str, str]) -> Iterator[RunLogger]:
        """Yield the parent run of several trainings, and end it with the context."""
        tags = {tag_names.KIND: tag_names.GROUP_RUN, tag_names.DEVICE: self.execution.device, **tags}
        run_id = self.mlflow_store.create_parent_run(name, tags)
        run = RunLogger.existing(self.context.sender, run_id)
        self._log_environment(run)
        try:
            yield run
        except BaseException:
            run.end("FAILED", "failed")
            raise
        if self.context.interruption.is_requested:
            run.end("KILLED", "interrupted")
        else:
            run.end("FINISHED", "completed")
        self.context.flush()

    def run_several(
        self,
        named_recipes: Sequence[tuple[str, Recipe]],
        parent: RunLogger,
        workers: int | str = "auto",
        run_options: RunOptions = RunOptions(),
    ) -> list[tuple[TrialResult, str | None]]:
        """Run recipes, each in a run below `parent`; return results and run ids in the given order.

        The folders of `run_options` get a subfolder of each training, by its seed.
        """
        count, remark = worker_count(workers, self.execution)
        if remark:
            self.context.callback.on_message(remark)
        images = {recipe.data: self.load_images(recipe) for _, recipe in named_recipes}
        tags = {tag_names.KIND: tag_names.TRAINING_RUN, tag_names.DEVICE: self.execution.device}

        def make_job(name: str, recipe: Recipe, requeue: Requeue) -> SeedJob:
            parameters = list(recipe.to_flat_dict())
            run = TrainingRunLogger.start(self.context.sender, name, recipe, parameters, tags, parent)
            folders = {
                key: parent_folder / seed_folder(recipe)
                for key, parent_folder in (("output", run_options.output), ("tensorboard", run_options.tensorboard))
                if parent_folder
            }
            source = self.source if run_options.test else None
            return SeedJob(name, recipe, images[recipe.data], run, self.context, requeue, test_source=source, **folders)

        with make_backend(self.execution, min(count, len(named_recipes))) as backend:
            jobs = run_jobs(named_recipes, backend, self.context, make_job)
        self.context.flush()  # only then all runs have ids
        return [
            (job.result, job.run.run_id) if job and job.result else (not_started("interrupted"), None) for job in jobs
        ]

    def _log_environment(self, run: RunLogger) -> None:
        run.log_text(ENVIRONMENT_FILE, json.dumps(environment(self.execution), indent=2))


@contextlib.contextmanager
def open_training_session(
    workspace: Workspace | None,
    execution: Execution,
    callback: StudyCallback | None,
    *,
    experiment: str = "fmnist-search",
    plots: bool = True,
) -> Iterator[TrainingSession]:
    """Yield a session for trainings without a study.

    Raises:
        UserError: if the store is unreachable, a folder cannot be written, or the experiment is no name.
    """
    workspace, callback = workspace or Workspace.resolve(), callback or StudyCallback()
    check_name("experiment", experiment)
    complete_environment()
    workspace.check_writable()
    with private_files(), interrupt_on_signals() as interruption, store_errors(workspace.tracking_uri):
        mlflow_store = MlflowStore(workspace.tracking_uri, experiment)
        with open_sender(workspace, mlflow_store, callback) as sender:
            context = JobContext(sender, callback, interruption, plots)
            source = DataSource.from_workspace(workspace)
            yield TrainingSession(workspace, source, mlflow_store, execution, context)


def resolve_settings(settings: ExecutionSettings, threads: int = 0) -> Execution:
    """Return how trainings with these settings run on this machine; `threads` is the default number of threads.

    Raises:
        UserError: if the device is missing, the engine needs another one, or there is no such memory format.
    """
    if settings.memory_format not in MEMORY_FORMATS:
        raise UserError(f"memory_format: {settings.memory_format!r} is none; take one of {', '.join(MEMORY_FORMATS)}")
    resolved = resolve_execution(
        settings.device, settings.threads or threads, settings.engine, deterministic=settings.deterministic
    )
    return dataclasses.replace(resolved, memory_format=settings.memory_format)


def _run_inline(
    job: TrackedJob,
    execution: Execution,
    training_callback: TrainingCallback,
    progress_callback: ProgressCallback | None,
    resume_from: Mapping[str, Any] | None,
) -> TrialResult:
    started = time.monotonic()
    try:
        result = run_trial(
            job.recipe,
            job.images,
            execution,
            job.on_epoch,
            resume_from=resume_from,
            training_callback=training_callback,
            progress_callback=progress_callback,
        )
    except KeyboardInterrupt:
        result = job.partial_result(TrialState.INTERRUPTED, "interrupted in the middle of an epoch")
    except Exception:
        job.close(TrialResult(TrialState.FAILED, (), 0.0, reason="the training stopped on an error"))
        raise
    job.on_result(result, time.monotonic() - started)
    return result
