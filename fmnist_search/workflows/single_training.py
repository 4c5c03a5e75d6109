"""Trainings without a study: one recipe on record, taken up again where it stopped, or from several seeds."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.errors import UserError
from fmnist_search.execution.backend import make_backend
from fmnist_search.execution.capacity import worker_count
from fmnist_search.files import atomic_write
from fmnist_search.models.classifier import check_size
from fmnist_search.recipe.execution import Execution, ExecutionSettings
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.study_note import epochs_csv, origins_csv
from fmnist_search.results.champion import completed_accuracies
from fmnist_search.results.statistics import format_mean_std, mean_and_std
from fmnist_search.results.training import EpochReport, Stopper, TrialResult, TrialState
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.provenance import environment
from fmnist_search.tracking.run_logger import RECIPE_FILE, RunLogger, TrainingRunLogger
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.stored_runs import ENVIRONMENT_FILE
from fmnist_search.tracking.stored_training import execution_from_environment
from fmnist_search.tracking.tensorboard import TensorBoardWriter
from fmnist_search.tracking.training_artifacts import log_training_plots
from fmnist_search.training.autotune import autotune
from fmnist_search.training.callbacks import CallbackList, CheckpointWriter, TrainingCallback, never_stop
from fmnist_search.training.checkpoint import load_checkpoint, state_to_bytes
from fmnist_search.training.loop import ProgressCallback
from fmnist_search.training.runtime import resolve_execution
from fmnist_search.training.trial import run_trial
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.jobs import (
    InterruptHandler,
    JobContext,
    RetryingJob,
    TrackedJob,
    flush_tracking,
    not_started,
    open_sender,
    run_jobs,
)
from fmnist_search.workflows.settings import RunOptions
from fmnist_search.workspace import Workspace

BEST_FILE, LAST_FILE, EPOCHS_FILE = "weights.pt", "last_weights.pt", "epochs.csv"
ORIGINS_FILE = "recipe_origins.csv"


@dataclass(frozen=True)
class SeedResults:
    """The same recipe from several seeds, each with its result and the id of its run; `run_id` is above them."""

    recipes: tuple[Recipe, ...]
    results: tuple[TrialResult, ...]
    run_ids: tuple[str | None, ...]
    run_id: str

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Validation accuracies at the last epoch, of those that completed."""
        return completed_accuracies(self.results)

    def __str__(self) -> str:
        return format_mean_std(self.accuracies) if self.accuracies else "no validation accuracy"


def train(
    recipe: Recipe,
    *,
    workspace: Workspace | None = None,
    execution: ExecutionSettings = ExecutionSettings(),
    run_options: RunOptions = RunOptions(),
    stopper: Stopper = never_stop,
    callback: StudyCallback | None = None,
    progress_callback: ProgressCallback | None = None,
) -> tuple[TrialResult, str]:
    """Train one recipe without a study, recorded in MLflow; return the result and the run's id.

    `stopper` is called after every epoch and may end the training; `progress_callback` is called several times a second
    within an epoch. The run keeps the best and the last weights as state files and the epochs as CSV. The state from
    which `resume` continues is written to `Workspace.training_folder` after every epoch.

    Raises:
        UserError: if the network cannot be built, images or device are missing, or the store is unreachable.
    """
    check_size(recipe.model)
    _check_output(run_options.output)
    # Only the precision is measured, and the recipe records it: a run that is trained again gives the same values.
    resolved = resolve_settings(execution)
    recipe = _with_precision(recipe, execution.precision, resolved)
    workspace = workspace or Workspace.resolve()
    with open_training_session(workspace, resolved, run_options.experiment, callback) as session:
        images = session.load_images(recipe)
        training = session.make_job(f"train {run_options.name or recipe.label}", recipe, images, {}, stopper)
        if run_options.origins:
            training.run.log_text(ORIGINS_FILE, origins_csv(run_options.origins))
        return session.run_single(training, run_options, progress_callback), training.run.run_key


def resume(
    run_id: str,
    *,
    epochs: int | None = None,
    workspace: Workspace | None = None,
    run_options: RunOptions = RunOptions(),
    stopper: Stopper = never_stop,
    callback: StudyCallback | None = None,
    progress_callback: ProgressCallback | None = None,
) -> tuple[TrialResult, str]:
    """Go on with a single training from its last whole epoch, in a new run that holds all its epochs.

    It is trained under the conditions of the first part, to `epochs` in all or, by default, to its recipe's last; on
    a CPU it equals a training that never stopped, bit for bit. A curve of the learning rate is that of all its epochs.

    Raises:
        UserError: nothing is kept of that run here, it is damaged, has those epochs already, or needs other images or
            another device than there are.
    """
    _check_output(run_options.output)
    workspace = workspace or Workspace.resolve()
    kept = load_checkpoint(workspace.training_folder(run_id), run_id)
    recipe = kept.recipe.replace({"epochs": epochs}) if epochs else kept.recipe
    if recipe.epochs <= kept.epochs_done:
        raise UserError(
            f"epochs: {recipe.epochs} are not more than the {kept.epochs_done} that run {run_id!r} has; say how "
            f"many it "
            "shall have in all, with --epochs"
        )
    execution = execution_from_environment(kept.execution, run_id)
    with open_training_session(workspace, execution, run_options.experiment, callback) as shop:
        if shop.mlflow_store.load_recipe(run_id) != kept.recipe:
            raise UserError(
                f"run {run_id!r}: what {workspace.training_folder(run_id)} keeps is another training's; take it away"
            )
        images = shop.load_images(recipe)
        if [images.digest, images.split_digest] != kept.image_digests:
            raise UserError(
                f"run {run_id!r}: was trained on other images than {recipe.data.dataset} gives now; train its recipe "
                f"anew with --from-run {run_id}"
            )
        if recipe.schedule.name != "constant" and recipe.epochs != kept.recipe.epochs:
            shop.context.callback.on_message(
                f"schedule.name: {recipe.schedule.name} was drawn over {kept.recipe.epochs} epochs until now, and over "
                f"{recipe.epochs} from here on"
            )
        name = f"train {recipe.label}, on from epoch {kept.epochs_done}"
        training = shop.make_job(name, recipe, images, {tag_names.RESUMES: run_id}, stopper)
        training.replay_epochs([EpochReport(**report) for report in kept.state["epochs"]])
        return shop.run_single(training, run_options, progress_callback, kept.state), training.run.run_key


def train_seeds(
    recipe: Recipe,
    seeds: int,
    *,
    workspace: Workspace | None = None,
    execution: ExecutionSettings = ExecutionSettings(),
    run_options: RunOptions = RunOptions(),
    callback: StudyCallback | None = None,
) -> SeedResults:
    """Train one recipe from its seed and those that follow, side by side, each in a run below a common one.

    On a CPU each has a thread of its own unless more are asked for. Their common run holds mean and deviation of the
    validation accuracy; the best and the last weights of each are kept, but none can be taken up again.

    Raises:
        UserError: a network that cannot be built, no images, no such device, or a store out of reach.
    """
    check_size(recipe.model)
    resolved = resolve_settings(execution, threads=1)
    recipe = _with_precision(recipe, execution.precision, resolved)
    name = run_options.name or recipe.label
    recipes = [recipe.replace({"seed": recipe.seed + number}) for number in range(seeds)]
    trainings = [(f"seed {each.seed} {name}", each) for each in recipes]
    workspace = workspace or Workspace.resolve()
    with (
        open_training_session(workspace, resolved, run_options.experiment, callback) as shop,
        shop.open_group_run(f"train {name}, {seeds} seeds", {tag_names.FAMILY: recipe.model.family}) as above,
    ):
        if run_options.origins:
            above.log_text(ORIGINS_FILE, origins_csv(run_options.origins))
        done = shop.run_several(trainings, above, execution.workers)
        results, runs = zip(*done, strict=True)
        several = SeedResults(tuple(recipes), results, runs, above.run_key)
        _log_seed_results(above, several)
    return several


def resolve_settings(settings: ExecutionSettings, threads: int = 0) -> Execution:
    """Return how trainings with these settings are run here; `threads` is taken where the settings name no number.

    Raises:
        UserError: if the device is missing, or the engine needs another one.
    """
    return resolve_execution(
        settings.device, settings.threads or threads, settings.engine, deterministic=settings.deterministic
    )


def _with_precision(recipe: Recipe, precision: str | None, execution: Execution) -> Recipe:
    """The recipe with another number format where one is asked for, "auto" by a probe of this machine."""
    if precision is None:
        return recipe
    return recipe.replace({"precision": autotune(execution)[1] if precision == "auto" else precision})


def _log_seed_results(parent: RunLogger, seed_results: SeedResults) -> None:
    results = seed_results.results
    columns: dict[str, list[object]] = {
        "seed": [recipe.seed for recipe in seed_results.recipes],
        "state": [result.state.value for result in results],
        "val_accuracy": [result.value for result in results],
        "best_val_accuracy": [result.best_val_accuracy for result in results],
        "run_id": list(seed_results.run_ids),
    }
    parent.log_table("seeds.json", columns)
    parent.set_note(f"# {seed_results.recipes[0].label}\n\nValidation accuracy: {seed_results}\n")
    if seed_results.accuracies:
        mean, deviation = mean_and_std(seed_results.accuracies)
        parent.log_metrics({metric_names.SEEDS_VAL_ACCURACY_MEAN: mean, metric_names.SEEDS_VAL_ACCURACY_STD: deviation})


# ---------------------------------------------------------------------------------------- the workshop


class SingleJob(TrackedJob):
    """A training in this process, alone."""

    def replay_epochs(self, reports: Sequence[EpochReport]) -> None:
        """Take in the epochs that it had before it was taken up again."""
        for report in reports:
            self._reports.append(report)
            self.run.log_epoch(report, is_last=False)


class SeedJob(RetryingJob):
    """One of several trainings, whose weights are kept."""

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Take in the result."""
        super().on_result(result, seconds)
        if result.state is TrialState.COMPLETED and result.weights and result.last_weights:
            files = _artifact_files({BEST_FILE: result.weights, LAST_FILE: result.last_weights}, result)
            for path, content in files.items():
                self.run.log_artifact(path, content)


@dataclass
class TrainingSession:
    """What trainings without a study share: where they are recorded, how they are run, and who listens."""

    workspace: Workspace
    source: DataSource
    mlflow_store: MlflowStore
    execution: Execution
    context: JobContext

    def load_images(self, recipe: Recipe) -> Images:
        """The images of a recipe, on the device."""
        return load_images(recipe.data, self.source, self.execution.device)

    def make_job(
        self, name: str, recipe: Recipe, images: Images, tags: Mapping[str, str], stopper: Stopper
    ) -> SingleJob:
        """Open the run of a single training."""
        every = {tag_names.KIND: tag_names.TRAINING_RUN, tag_names.DEVICE: self.execution.device, **tags}
        run = self.mlflow_store.start_training_run(self.context.sender, name, recipe, every)
        run.log_dataset(images, vars(recipe.data))
        run.log_text(ENVIRONMENT_FILE, json.dumps(environment(self.execution), indent=2))
        return SingleJob(name, recipe, images, run, self.context, stopper)

    def run_single(
        self,
        job: SingleJob,
        run_options: RunOptions,
        progress_callback: ProgressCallback | None,
        resume_from: Mapping[str, Any] | None = None,
    ) -> TrialResult:
        """Run it to its end, and keep what is to be kept of it."""
        keeper = CheckpointWriter(
            self.workspace.training_folder(job.run.run_key), job.recipe, job.images, self.execution
        )
        callbacks: list[TrainingCallback] = [keeper]
        if run_options.tensorboard:
            callbacks.append(TensorBoardWriter(run_options.tensorboard, job.images.classes))
        result = _run_inline(job, self.execution, CallbackList(callbacks), progress_callback, resume_from)
        if keeper.has_checkpoint:
            state = keeper.last_checkpoint().state
            weights = {BEST_FILE: state["weights"], LAST_FILE: state["training"]["averaged"]}
            files = _artifact_files(weights, result)
            for path, content in files.items():
                job.run.log_artifact(path, content)
            if output := run_options.output:
                _write_files({RECIPE_FILE: recipe_to_toml(job.recipe).encode(), **files}, output)
            of = (job.name, job.recipe, result.epochs, weights[LAST_FILE], job.images)
            self.context.sender.run_when_idle(partial(log_training_plots, job.run, *of))
        flush_tracking(self.context)
        return result

    @contextlib.contextmanager
    def open_group_run(self, name: str, tags: Mapping[str, str]) -> Iterator[RunLogger]:
        """The run above several trainings, which closes it well."""
        run_id = self.mlflow_store.create_parent_run(
            name, {tag_names.KIND: tag_names.GROUP_RUN, tag_names.DEVICE: self.execution.device, **tags}
        )
        run = RunLogger.existing(self.context.sender, run_id)
        run.log_text(ENVIRONMENT_FILE, json.dumps(environment(self.execution), indent=2))
        try:
            yield run
        except BaseException:
            run.end("FAILED", "failed")
            raise
        whole = not self.context.interrupt_handler.requested
        run.end("FINISHED" if whole else "KILLED", "completed" if whole else "interrupted")
        flush_tracking(self.context)

    def run_several(
        self, named_recipes: Sequence[tuple[str, Recipe]], parent: RunLogger, workers: int | str = "auto"
    ) -> list[tuple[TrialResult, str | None]]:
        """Run several recipes, each in a run of its own below `parent`; gives results and ids of runs, in order."""
        count, remark = worker_count(workers, self.execution)
        if remark:
            self.context.callback.on_message(remark)
        images = {recipe.data: self.load_images(recipe) for _, recipe in named_recipes}
        tags = {tag_names.KIND: tag_names.TRAINING_RUN, tag_names.DEVICE: self.execution.device}

        def begin(name: str, recipe: Recipe, again: Callable[[], None] | None) -> SeedJob:
            run = TrainingRunLogger.start(self.context.sender, name, recipe, list(recipe.to_flat_dict()), tags, parent)
            return SeedJob(name, recipe, images[recipe.data], run, self.context, again)

        with make_backend(self.execution, min(count, len(named_recipes))) as crew:
            done = run_jobs(named_recipes, crew, self.context, begin)
        flush_tracking(self.context)  # from here on the runs have ids
        return [
            (member.result, member.run.run_id) if member and member.result else (not_started("interrupted"), None)
            for member in done
        ]


@contextlib.contextmanager
def open_training_session(
    workspace: Workspace,
    execution: Execution,
    experiment: str,
    callback: StudyCallback | None,
) -> Iterator[TrainingSession]:
    """Everything that trainings without a study need while they run: signals caught, a store that answers.

    Raises:
        UserError: the store is out of reach.
    """
    source = DataSource.from_workspace(workspace)
    callback = callback or StudyCallback()
    interruption = InterruptHandler()
    with interruption.handle_signals(), store_errors(workspace.tracking_uri):
        tracking = MlflowStore(workspace.tracking_uri, experiment)
        with open_sender(workspace, tracking, callback) as sender:
            yield TrainingSession(workspace, source, tracking, execution, JobContext(sender, callback, interruption))


def _run_inline(
    job: SingleJob,
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


def _artifact_files(weights: Mapping[str, Mapping[str, Tensor]], result: TrialResult) -> dict[str, bytes]:
    """What is kept of a training: weights as plain state files, and its epochs as a table."""
    states = {name: state_to_bytes(state) for name, state in weights.items()}
    return {**states, EPOCHS_FILE: epochs_csv(result.epochs).encode()}


def _write_files(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)


def _check_output(folder: Path | None) -> None:
    """Make the folder, and see that it can be written, before anything is trained for it."""
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written ({error.strerror}); name another folder") from None
