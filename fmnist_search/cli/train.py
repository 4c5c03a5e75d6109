"""Training a recipe without a study."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.accuracy_output import format_seed_tests, print_class_scores
from fmnist_search.cli.app import (
    DataDirOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    SetOption,
    StorageOption,
    ThreadsOption,
    TrackingUriOption,
    WorkdirOption,
    WorkersOption,
    app,
    is_recipe_file,
    load_recipe,
    make_workspace,
    parse_workers,
    plots_enabled,
)
from fmnist_search.cli.command import TrainingCommand, given_command
from fmnist_search.cli.mlflow_run import find_file
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.recipe.hyperparameters import Value
    from fmnist_search.recipe.recipe import Recipe

PRESET_PREFIX = "preset "

KEPT_BY_RESUME = (
    *("output", "test", "register", "model_name", "tensorboard"),
    *("tracking_uri", "workdir", "storage", "data_dir", "as_json"),
)
"""Parameters that the command which continues an interrupted training must be given again."""


@app.command(cls=TrainingCommand)
def train(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe file, or name of a preset or family.", show_default=False)
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Preset to train.", metavar="NAME", show_default=False)] = None,
    from_run: Annotated[
        str | None, typer.Option(help="MLflow run whose recipe is trained.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Run to continue, up to --epochs in all.", metavar="RUN_ID", show_default=False)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs.", show_default=False)] = None,
    seeds: Annotated[
        int, typer.Option(help="Number of seeds, each a training of its own, in parallel.", min=1, max=1_000)
    ] = 1,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = None,
    precision: Annotated[
        str | None, typer.Option(help="Precision: float32, bfloat16, or auto for the faster one here.")
    ] = None,
    settings: SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a copy of the weights, the epochs and the recipe.", metavar="FOLDER", show_default=False
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for event files of TensorBoard.", metavar="FOLDER", show_default=False)
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Evaluate the kept weights on the test images, once, at the end.")
    ] = False,
    register: Annotated[
        bool, typer.Option("--register", help="Test the kept weights once, and register them as a model's version.")
    ] = False,
    model_name: Annotated[
        str | None, typer.Option(help="Name of the registered model; by default that of `promote`.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files in the folder of --output.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print every value with its origin before the training.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every value with its origin and the network, and start nothing.")
    ] = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one recipe without a study, tracked in MLflow.

    The run stores the best weights, the last weights and the epochs as CSV. Ctrl-C stops after the running epoch;
    --resume continues from there.

    Examples:

      fmnist-search train lenet --set data.validation=0.1

      fmnist-search train recipe.toml --set optimizer.learning_rate=0.01 --seeds 3

      fmnist-search train lenet --test

      fmnist-search train lenet --register

      fmnist-search train --from-run 4f1c... --epochs 18

      fmnist-search train --resume 4f1c... --epochs 36
    """
    from fmnist_search.config.toml_files import parse_assignments
    from fmnist_search.recipe.execution import ExecutionSettings
    from fmnist_search.workflows.settings import RunOptions

    overrides = parse_assignments(settings or []) | ({"epochs": epochs} if epochs is not None else {})
    workspace = make_workspace(tracking_uri, workdir, data_dir, storage)
    conditions: dict[str, Any] = {"device": device, "threads": threads, "engine": engine, "precision": precision}
    conditions["workers"] = None if workers is None else parse_workers(workers)
    given: dict[str, Any] = {key: value for key, value in conditions.items() if value is not None}
    folders: dict[str, Any] = {"output": output, "tensorboard": tensorboard, "overwrite": force}
    folders |= {"test": test, "register": register, "model_name": model_name}
    if model_name and not register:
        raise UserError("--model-name: is the name of a registered model; add --register")
    if register and seeds > 1:
        raise UserError("--register: registers one training, and --seeds trains several; leave out one of the two")
    files = {key: value for key, value in folders.items() if value}
    plots = plots_enabled(context)
    if (recipe and preset) or sum(source is not None for source in (recipe or preset, from_run, resume)) != 1:
        raise UserError("train: give one of these: a recipe file, a preset, --from-run RUN_ID, --resume RUN_ID")
    if resume:
        refused = [f"--set {key}" for key in overrides if key != "epochs"] + [f"--{key}" for key in given]
        _reject_resume_options(refused + ["--seeds"] * (seeds > 1) + ["--dry-run"] * dry_run + ["--verbose"] * verbose)
        options = {
            "epochs": overrides.get("epochs"),
            "workspace": workspace,
            "run_options": RunOptions(**files, plots=plots),
        }
        _train_one(context, resume, options, as_json)
        return
    if recipe and is_recipe_file(recipe):
        recipe = str(find_file(Path(recipe)))
    if from_run:
        whence = f"run {from_run}"
        base, memory_format = _load_from_run(from_run, tracking_uri)
        given |= {"memory_format": memory_format} if memory_format else {}
    else:
        base, whence = _resolve_recipe(str(recipe or preset))
    chosen = base.replace(overrides | ({"precision": precision} if precision and precision != "auto" else {}))
    in_file = _keys_of_file(recipe) if recipe and is_recipe_file(recipe) else set()
    origins = _value_origins(base, chosen, whence, [*overrides, *(["precision"] if precision else [])], in_file)
    if precision == "auto":
        origins["precision"] = "command line: auto, which is measured at the start"
    name = whence.removeprefix(PRESET_PREFIX) if whence.startswith(PRESET_PREFIX) else None
    options = {
        "workspace": workspace,
        "execution": ExecutionSettings(**given),
        "run_options": RunOptions(name=name, origins=origins, **files, plots=plots),
    }
    if verbose and not dry_run:
        _print_origins(chosen, origins)
    if dry_run:
        _print_recipe(chosen, origins, as_json)
    elif seeds > 1:
        _train_seeds(chosen, seeds, options, as_json)
    else:
        if workers:
            raise UserError("--workers: is for several trainings; give --seeds as well, or leave it out")
        _train_one(context, chosen, options, as_json)


def _resolve_recipe(name: str) -> tuple[Recipe, str]:
    """Return the recipe of a file or a preset before any override, and the name of its origin."""
    return load_recipe(name), name if is_recipe_file(name) else f"{PRESET_PREFIX}{name}"


def _load_from_run(run_id: str, tracking_uri: str | None) -> tuple[Recipe, str | None]:
    """Return the recipe of a run, and the memory format it was trained with, if that is recorded.

    A study measures which memory format is faster, and with another one the last digits differ.
    """
    from fmnist_search.tracking.store import MlflowStore
    from fmnist_search.tracking.stored_runs import load_environment, read_run
    from fmnist_search.workspace import resolve_tracking_uri as resolve

    store = MlflowStore(resolve(tracking_uri), "fmnist-search")
    recipe = store.load_recipe(run_id)
    try:
        return recipe, load_environment(store, read_run(store, run_id)).get("memory_format")
    except UserError:  # the run of an earlier version has a recipe and no record of its environment
        return recipe, None


def _keys_of_file(path: str) -> set[str]:
    """Return the dotted names of the values that a recipe file gives."""
    from fmnist_search.config.origins import given_keys
    from fmnist_search.config.toml_files import read_recipe, read_toml

    return given_keys(read_toml(path), read_recipe(path).to_flat_dict())


def _value_origins(
    base: Recipe, recipe: Recipe, name: str, overridden_keys: Collection[str], given_keys: Collection[str]
) -> dict[str, str]:
    """Return the origin of each value by dotted name.

    A value of the base that equals that of its family is a default, unless its key is one of `given_keys`.
    """
    from fmnist_search.config.origins import COMMAND_LINE, DEFAULT
    from fmnist_search.recipe.recipe import Recipe

    defaults, given = Recipe(model=type(recipe.model)()).to_flat_dict(), base.to_flat_dict()

    def origin(key: str, value: Value) -> str:
        if key in overridden_keys:
            return COMMAND_LINE
        is_from_base = given.get(key) == value and (key in given_keys or value != defaults[key])
        return name if is_from_base else DEFAULT

    return {key: origin(key, value) for key, value in recipe.to_flat_dict().items()}


def _reject_resume_options(options: Sequence[str]) -> None:
    """Raise UserError if there are options that a continued training cannot change."""
    if options:
        raise UserError(
            f"--resume: a continued training keeps its recipe and its settings; leave out {', '.join(options)}, or "
            "train the recipe anew with --from-run"
        )


def _print_recipe(recipe: Recipe, origins: dict[str, str], as_json: bool) -> None:
    from fmnist_search.cli import output
    from fmnist_search.recipe.formatting import format_value
    from fmnist_search.reporting.model_summary import summarize

    summary = summarize(recipe.model, recipe.data.num_classes)
    flat = recipe.to_flat_dict()
    if as_json:
        values = {key: {"value": value, "origin": origins[key]} for key, value in flat.items()}
        output.print_json({"recipe": values, "parameters": summary.parameters, "mult_adds": summary.mult_adds})
        return
    rows = [[key, format_value(value), origins[key]] for key, value in flat.items()]
    output.print_table(output.make_table(["hyperparameter", "value", "origin"], rows))
    output.stdout.print(f"\n{summary.text}\n\nnothing was started", markup=False)


def _print_origins(recipe: Recipe, origins: dict[str, str]) -> None:
    from fmnist_search.cli.output import print_message
    from fmnist_search.recipe.formatting import format_value

    for key, value in recipe.to_flat_dict().items():
        print_message(f"{key} = {format_value(value)} ({origins[key]})")


def _train_one(context: typer.Context, recipe_or_run_id: Recipe | str, options: dict[str, Any], as_json: bool) -> None:
    """Train a recipe, or continue the run of that id."""
    from fmnist_search.cli.output import ExitCode, format_percent, format_test, print_json, stderr, stdout
    from fmnist_search.cli.progress import TrainingProgressDisplay
    from fmnist_search.cli.serialization import training_to_dict
    from fmnist_search.results.training import TrialState
    from fmnist_search.workflows import single_training

    display = TrainingProgressDisplay()
    name = (
        f"run {recipe_or_run_id}"
        if isinstance(recipe_or_run_id, str)
        else options["run_options"].name or recipe_or_run_id.label
    )
    options = {**options, "callback": display, "progress_callback": display.progress_callback}
    if isinstance(recipe_or_run_id, str):
        result, run_id = single_training.resume(recipe_or_run_id, **options)
    else:
        result, run_id = single_training.train(recipe_or_run_id, **options)
    if as_json:
        print_json(training_to_dict(result, run_id))
    if result.state is TrialState.FAILED:
        raise UserError(
            f"train: {result.reason}; the run {run_id} has the details", exit_code=ExitCode.NOTHING_COMPLETED
        )
    if result.state is TrialState.INTERRUPTED:
        done = len(result.epochs)
        force = " --force" * (options["run_options"].output is not None)
        again = given_command(context, only=KEPT_BY_RESUME, extra=f"--resume {run_id}{force}")
        further = f"; continue with `{again}`" if done else ""
        stderr.print(f"interrupted after {done} epoch{'s' * (done != 1)}; run {run_id}{further}", markup=False)
        raise typer.Exit(ExitCode.INTERRUPTED)
    if not as_json:
        reached = "trained" if result.value is None else f"{format_percent(result.value)} on validation"
        if result.best_epoch and result.best_epoch < len(result.epochs):
            reached += f" (its best epoch, {result.best_epoch}, {format_percent(result.best_val_accuracy)})"
        ended = f", {result.reason}" if result.reason else ""
        if result.test:
            print_class_scores(result.test)
            reached += f", {format_test(result.test.accuracy)}"
        reached += f", registered as {result.registered}" if result.registered else ""
        stdout.print(f"{name}: {reached}{ended}; run {run_id}, see it with `fmnist-search ui`", markup=False)


def _train_seeds(recipe: Recipe, seeds: int, options: dict[str, Any], as_json: bool) -> None:
    from fmnist_search.cli.output import ExitCode, print_json, stderr, stdout
    from fmnist_search.cli.progress import MessagePrinter
    from fmnist_search.cli.serialization import seed_tests_to_dict, training_to_dict
    from fmnist_search.results.statistics import mean_and_std
    from fmnist_search.results.training import TrialState
    from fmnist_search.workflows import single_training

    several = single_training.train_seeds(recipe, seeds, **options, callback=MessagePrinter())
    trained = zip(several.results, several.run_ids, strict=True)
    if as_json:
        mean, deviation = mean_and_std(several.accuracies) if several.accuracies else (None, None)
        runs = [training_to_dict(result, run_id) for result, run_id in trained]
        test = seed_tests_to_dict(several.tests) if several.tests else {}
        print_json({"run_id": several.run_id, "mean": mean, "deviation": deviation, **test, "runs": runs})
    states = {result.state for result in several.results}
    if TrialState.INTERRUPTED in states:
        stderr.print(f"interrupted; the run {several.run_id} has the results so far", markup=False)
        raise typer.Exit(ExitCode.INTERRUPTED)
    if failed := [result.reason for result in several.results if result.state is TrialState.FAILED]:
        raise UserError(
            f"train: {len(failed)} of {seeds} trainings failed, the last because {failed[-1]}; the run "
            f"{several.run_id} has the details",
            exit_code=ExitCode.NOTHING_COMPLETED,
        )
    if not as_json:
        name = options["run_options"].name or recipe.label
        tested = f", {format_seed_tests(several.tests)}" if several.tests else ""
        stdout.print(f"{name}: {several} on validation{tested}; run {several.run_id}, see it with `fmnist-search ui`")
