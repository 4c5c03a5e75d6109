"""Sweeps: recipes trained at several values of one hyperparameter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
    check_output_path,
    load_recipe,
    make_workspace,
    parse_workers,
    plots_enabled,
)
from fmnist_search.cli.command import TrainingCommand
from fmnist_search.errors import UserError


@app.command("sweep-lr", cls=TrainingCommand)
def sweep_lr(
    context: typer.Context,
    recipes: Annotated[list[str], typer.Argument(help="Presets, families or recipe files.", metavar="RECIPE...")],
    factors: Annotated[
        str, typer.Option(help="Factors of the learning rate of the recipe.", metavar="A,B,...")
    ] = "1,2,4,8",
    seeds: Annotated[int, typer.Option(help="Number of seeds at each learning rate.", min=1, max=1_000)] = 2,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs.", show_default=False)] = None,
    settings: SetOption = None,
    output: Annotated[Path, typer.Option(help="PNG file to write.", metavar="FILE")] = Path("sweep.png"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = None,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train networks at several learning rates, and plot the accuracy that each reaches.

    Each training is a child run of the sweep's run in MLflow, which also stores the table and the plot. Several
    networks share one plot, for example with and without batch normalisation.

    Examples:

      fmnist-search sweep-lr lenet

      fmnist-search sweep-lr wide-conv wide-conv-bn --factors 1,2,4,8 --epochs 3
    """
    from fmnist_search.cli.output import ExitCode, make_table, print_json, print_table, stdout
    from fmnist_search.cli.progress import MessagePrinter
    from fmnist_search.cli.serialization import learning_rate_to_dict
    from fmnist_search.config.toml_files import parse_assignments
    from fmnist_search.recipe.execution import ExecutionSettings
    from fmnist_search.reporting.style import save_png
    from fmnist_search.results.statistics import format_mean_std
    from fmnist_search.results.training import TrialState
    from fmnist_search.workflows.lr_sweep import sweep_learning_rate

    check_output_path(output, suffix=".png", force=force)
    overrides = parse_assignments(settings or []) | ({"epochs": epochs} if epochs is not None else {})
    named = {name: load_recipe(name).replace(overrides) for name in recipes}
    conditions: dict[str, Any] = {"device": device, "threads": threads, "engine": engine}
    conditions["workers"] = None if workers is None else parse_workers(workers)
    sweep = sweep_learning_rate(
        named,
        _parse_factors(factors),
        seeds,
        workspace=make_workspace(tracking_uri, workdir, data_dir, storage),
        execution=ExecutionSettings(**{key: value for key, value in conditions.items() if value is not None}),
        plots=plots_enabled(context),
        callback=MessagePrinter(),
    )
    save_png(sweep.figure, output)
    if as_json:
        print_json(
            {
                "run_id": sweep.run_id,
                "picture": str(output),
                "rates": [learning_rate_to_dict(rate) for rate in sweep.rates],
            }
        )
    else:
        rows = [
            [
                rate.network,
                f"{rate.factor:g}x",
                f"{rate.learning_rate:.4g}",
                format_mean_std(rate.accuracies) if rate.accuracies else "-",
                ", ".join(sorted({result.state.value for result in rate.results})),
            ]
            for rate in sweep.rates
        ]
        print_table(make_table(["network", "factor", "learning_rate", "val_accuracy", "ended"], rows))
        stdout.print(f"\n{output}; run {sweep.run_id}, see it with `fmnist-search ui`", markup=False)
    if any(result.state is TrialState.INTERRUPTED for rate in sweep.rates for result in rate.results):
        raise typer.Exit(ExitCode.INTERRUPTED)


def _parse_factors(factors_text: str) -> list[float]:
    try:
        factors = [float(text) for text in factors_text.split(",")]
    except ValueError:
        factors = []
    if not factors or min(factors) <= 0 or len(set(factors)) < len(factors):
        raise UserError(f"--factors {factors_text}: must be different positive numbers, such as 1,2,4,8")
    return factors
