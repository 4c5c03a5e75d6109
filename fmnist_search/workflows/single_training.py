"""Trainings without a study: one recipe, a resumed training, or one recipe from several seeds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import check_size
from fmnist_search.recipe.execution import Execution, ExecutionSettings
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import network_size
from fmnist_search.reporting.tables import origins_csv
from fmnist_search.results.champion import completed_accuracies
from fmnist_search.results.statistics import format_mean_std, mean_and_std
from fmnist_search.results.training import Accuracy, EpochReport, Stopper, TrialResult, never_stop
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.stored_training import execution_from_environment
from fmnist_search.training.checkpoint import Checkpoint, load_checkpoint
from fmnist_search.training.devices import device_name
from fmnist_search.training.loop import ProgressCallback
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.settings import RunOptions
from fmnist_search.workflows.testing import check_test_set
from fmnist_search.workflows.training_files import check_output, seed_folder, tensorboard_folder
from fmnist_search.workflows.training_registration import check_registrable
from fmnist_search.workflows.training_session import open_training_session, resolve_settings
from fmnist_search.workflows.tuning import precision_warning, tuned
from fmnist_search.workspace import Workspace

ORIGINS_FILE = "recipe_origins.csv"


@dataclass(frozen=True)
class SeedResults:
    """The results of one recipe from several seeds, with the ids of their runs; `run_id` is their parent run."""

    recipes: tuple[Recipe, ...]
    results: tuple[TrialResult, ...]
    run_ids: tuple[str | None, ...]
    run_id: str

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Validation accuracies at the last epoch, of the trainings that completed."""
        return completed_accuracies(self.results)

    @property
    def tests(self) -> tuple[Accuracy, ...]:
        """Accuracies on the test images, of the trainings that were evaluated there."""
        return tuple(result.test.accuracy for result in self.results if result.test)

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
    check_size(recipe.model, recipe.data.num_classes)
    check_output(run_options.output, overwrite=run_options.overwrite)
    # Only the precision is measured, and the recipe records it: a run that is trained again gives the same values.
    resolved = resolve_settings(execution)
    recipe = _with_precision(recipe, execution.precision, resolved, callback)
    with open_training_session(
        workspace, resolved, callback, experiment=run_options.experiment, plots=run_options.plots
    ) as session:
        images = session.load_images(recipe)
        if run_options.test:
            check_test_set(recipe.data.dataset, session.source)
        check_registrable(session.mlflow_store, recipe, run_options, session.source)
        _announce(session.context.callback, recipe, images, resolved)
        job = session.make_job(f"train {run_options.name or recipe.label}", recipe, images, {}, stopper)
        if run_options.origins:
            job.run.log_text(ORIGINS_FILE, origins_csv(run_options.origins))
        return session.run_single(job, run_options, progress_callback), job.run.run_key


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
    """Resume a single training after its last complete epoch, in a new run that holds all epochs.

    It is executed like its first part, up to `epochs` in all or, by default, to the last epoch of its recipe. On a CPU
    the result equals that of an uninterrupted training, bit for bit. A learning rate schedule spans all epochs. A
    training that was killed after its last epoch, or has stopped early, gets its result without further epochs.

    Raises:
        UserError: if there is no checkpoint of that run here, it is damaged or has these epochs already, or images or
            device are not those of the first part.
    """
    check_output(run_options.output, overwrite=run_options.overwrite)
    workspace = workspace or Workspace.resolve()
    folder = workspace.training_folder(run_id)
    checkpoint = load_checkpoint(folder, run_id)
    recipe = checkpoint.recipe.replace({"epochs": epochs}) if epochs is not None else checkpoint.recipe
    if recipe.epochs < checkpoint.epochs_done:
        raise _too_few_epochs(recipe, checkpoint, run_id)
    execution = execution_from_environment(checkpoint.execution, run_id)
    with open_training_session(
        workspace, execution, callback, experiment=run_options.experiment, plots=run_options.plots
    ) as session:
        if session.mlflow_store.load_recipe(run_id) != checkpoint.recipe:
            raise UserError(f"run {run_id!r}: {folder} holds the checkpoint of another training; remove it")
        if recipe.epochs == checkpoint.epochs_done and session.mlflow_store.has_finished(run_id):
            raise _too_few_epochs(recipe, checkpoint, run_id)
        images = session.load_images(recipe)
        _check_images(checkpoint, images, run_id)
        if recipe.schedule.name != "constant" and recipe.epochs != checkpoint.recipe.epochs:
            session.context.callback.on_message(
                f"schedule.name: {recipe.schedule.name} spanned {checkpoint.recipe.epochs} epochs until now, and spans "
                f"{recipe.epochs} from here on"
            )
        if run_options.test:
            check_test_set(recipe.data.dataset, session.source)
        check_registrable(session.mlflow_store, recipe, run_options, session.source)
        _announce(session.context.callback, recipe, images, execution)
        name = f"train {recipe.label}, on from epoch {checkpoint.epochs_done}"
        job = session.make_job(name, recipe, images, {tag_names.RESUMES: run_id}, stopper)
        job.replay_epochs([EpochReport(**report) for report in checkpoint.state["epochs"]])
        return session.run_single(job, run_options, progress_callback, checkpoint.state), job.run.run_key


def train_seeds(
    recipe: Recipe,
    seeds: int,
    *,
    workspace: Workspace | None = None,
    execution: ExecutionSettings = ExecutionSettings(),
    run_options: RunOptions = RunOptions(),
    callback: StudyCallback | None = None,
) -> SeedResults:
    """Train one recipe from its seed and the following ones, several at a time, each in a run below a common one.

    On a CPU each gets one thread by default. The common run holds the mean and the standard deviation of the validation
    accuracy. The best and the last weights of each are artifacts of its run, but none can be resumed.

    Raises:
        UserError: if the network cannot be built, images or device are missing, or the store is unreachable.
    """
    check_size(recipe.model, recipe.data.num_classes)
    resolved = resolve_settings(execution, threads=1)
    recipe = _with_precision(recipe, execution.precision, resolved, callback)
    name = run_options.name or recipe.label
    recipes = [recipe.replace({"seed": recipe.seed + number}) for number in range(seeds)]
    check_output(run_options.output, [seed_folder(each) for each in recipes], overwrite=run_options.overwrite)
    with (
        open_training_session(
            workspace, resolved, callback, experiment=run_options.experiment, plots=run_options.plots
        ) as session,
        session.open_group_run(f"train {name}, {seeds} seeds", {tag_names.FAMILY: recipe.model.family}) as parent,
    ):
        if run_options.origins:
            parent.log_text(ORIGINS_FILE, origins_csv(run_options.origins))
        if run_options.test:
            check_test_set(recipe.data.dataset, session.source)
        _announce(session.context.callback, recipe, session.load_images(recipe), resolved)
        if board := run_options.tensorboard:
            board = tensorboard_folder(board, f"train {name}", parent.run_key)
        options = dataclasses.replace(run_options, tensorboard=board)
        named_recipes = [(f"seed {each.seed} {name}", each) for each in recipes]
        trained = session.run_several(named_recipes, parent, execution.workers, options)
        results, run_ids = zip(*trained, strict=True)
        seed_results = SeedResults(tuple(recipes), results, run_ids, parent.run_key)
        _log_seed_results(parent, seed_results)
    return seed_results


def _with_precision(
    recipe: Recipe, precision: str | None, execution: Execution, callback: StudyCallback | None
) -> Recipe:
    """Return the recipe with another precision, if one is given; "auto" measures this machine. Report a slow one."""
    if precision is not None:
        recipe = recipe.replace({"precision": tuned(execution)[1] if precision == "auto" else precision})
    if callback and (warning := precision_warning(execution, recipe.precision)):
        callback.on_message(warning)
    return recipe


def _announce(callback: StudyCallback, recipe: Recipe, images: Images, execution: Execution) -> None:
    """Say what is trained on what, a message each for the device, the images, their classes and the network."""
    size = network_size(recipe.model, recipe.data.num_classes)
    threads = f", {execution.threads} thread{'s' * (execution.threads != 1)}" if execution.device == "cpu" else ""
    lines = {
        "device": f"{execution.device} ({device_name(execution.device)}){threads}",
        "images": f"{recipe.data.dataset}, {len(images.train):,} to train and {len(images.validation):,} to validate",
        "classes": f"{len(images.classes)}: {', '.join(images.classes)}",
        "network": f"{recipe.label}, {size.parameters:,} parameters, {size.mult_adds:,} multiply-adds of an image",
    }
    for name, text in lines.items():
        callback.on_message(f"{name}: {text}")


def _log_seed_results(parent: RunLogger, seed_results: SeedResults) -> None:
    results = seed_results.results
    columns: dict[str, list[object]] = {
        "seed": [recipe.seed for recipe in seed_results.recipes],
        "state": [result.state.value for result in results],
        "val_accuracy": [result.value for result in results],
        "best_val_accuracy": [result.best_val_accuracy for result in results],
        **_test_columns(seed_results),
        "run_id": list(seed_results.run_ids),
    }
    parent.log_table("seeds.json", columns)
    parent.set_note(f"# {seed_results.recipes[0].label}\n\nValidation accuracy: {seed_results}\n")
    if seed_results.accuracies:
        mean, std = mean_and_std(seed_results.accuracies)
        parent.log_metrics({metric_names.SEEDS_VAL_ACCURACY_MEAN: mean, metric_names.SEEDS_VAL_ACCURACY_STD: std})
    if seed_results.tests:
        mean, std = mean_and_std([test.value for test in seed_results.tests])
        parent.log_metrics({metric_names.SEEDS_TEST_ACCURACY_MEAN: mean, metric_names.SEEDS_TEST_ACCURACY_STD: std})
        mean, std = mean_and_std([test.loss or 0.0 for test in seed_results.tests])
        parent.log_metrics({metric_names.SEEDS_TEST_LOSS_MEAN: mean, metric_names.SEEDS_TEST_LOSS_STD: std})


def _test_columns(seed_results: SeedResults) -> dict[str, list[object]]:
    if not seed_results.tests:
        return {}
    tests = [result.test.accuracy if result.test else None for result in seed_results.results]
    return {
        "test_accuracy": [test and test.value for test in tests],
        "test_loss": [test and test.loss for test in tests],
    }


def _too_few_epochs(recipe: Recipe, checkpoint: Checkpoint, run_id: str) -> UserError:
    return UserError(
        f"epochs: {recipe.epochs} are not more than the {checkpoint.epochs_done} that run {run_id!r} has; give the "
        "total number with --epochs"
    )


def _check_images(checkpoint: Checkpoint, images: Images, run_id: str) -> None:
    if [images.digest, images.split_digest] != checkpoint.image_digests:
        dataset = checkpoint.recipe.data.dataset
        raise UserError(
            f"run {run_id!r}: was trained on other images than {dataset} gives now; train its recipe anew with "
            f"--from-run {run_id}"
        )
