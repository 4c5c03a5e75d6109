"""Measure what many workers cost the driver of a study: `python -m benchmarks.cluster driver`.

`driver` measures the driver's CPU a trial: a real study (Optuna's storage, lease, outbox, MLflow) on simulated workers.
It takes the window of trials that ends at `--trials`; the study knows all trials before the window, made in bulk with
the attributes of a random search, except those that the workers need to be busy.

    python -m benchmarks.cluster driver                                            # trials 900 to 1,000, 64 workers
    python -m benchmarks.cluster driver --trials 10000                             # trials 9,900 to 10,000
    python -m benchmarks.cluster driver --trials 10000 --workers 1000
    python -m benchmarks.cluster driver --no-tracking --sampler random --json      # Optuna alone, machine-readable
    python -m benchmarks.cluster driver --trials 300 --from-start --profile out    # a profile for pstats

`record` runs trials of nine epochs without a pruner, and compares the points in MLflow with what was reported.

    python -m benchmarks.cluster record --trials 1000

`turns` and `nodes` start a Ray cluster on this machine. `turns` measures what a turn of the conversation between driver
and worker costs; the machine should be idle. `nodes` kills a node of each of ten studies while another joins.

    python -m benchmarks.cluster turns
    python -m benchmarks.cluster nodes

`all` makes all of these measurements, which takes half an hour on two cores, and writes them into a file.

    python -m benchmarks.cluster all
"""

from __future__ import annotations

import cProfile
import dataclasses
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import optuna
import typer

from benchmarks.cluster.driver import Simulation, check_budget, check_record, measure_driver, run_simulation
from benchmarks.cluster.node_losses import lose_nodes
from benchmarks.cluster.report import MEASUREMENTS, default_path, measure_all, table
from benchmarks.cluster.turns import measure_backends
from benchmarks.machine import machine, versions

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False, rich_markup_mode=None)

TrialsOption = Annotated[int, typer.Option(help="trials that have ended at the end of the window", min=1)]
WorkersOption = Annotated[int, typer.Option(help="simulated workers", min=1)]
SamplerOption = Annotated[str, typer.Option(help="sampler")]
PrunerOption = Annotated[str, typer.Option(help="pruner")]
TrackingOption = Annotated[bool, typer.Option(help="write to MLflow")]
StorageOption = Annotated[str | None, typer.Option(help="Optuna's storage; by default SQLite in a temporary folder")]
SeedOption = Annotated[int, typer.Option(help="seed of the study")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def driver(
    trials: TrialsOption = 1000,
    window: Annotated[int, typer.Option(help="trials of the window", min=1)] = 100,
    workers: WorkersOption = 64,
    sampler: SamplerOption = "tpe",
    pruner: PrunerOption = "halving",
    tracking: TrackingOption = True,
    storage: StorageOption = None,
    seed: SeedOption = 0,
    from_start: Annotated[bool, typer.Option("--from-start", help="search all trials before the window too")] = False,
    profile: Annotated[Path | None, typer.Option(help="write a profile; figures are too high then")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the driver's CPU a trial in a window of trials."""
    known = 0 if from_start else max(trials - window - workers, 0)
    simulation = Simulation(workers, known, trials, sampler, pruner, tracked=tracking, seed=seed, storage=storage)
    profiler = cProfile.Profile() if profile else None
    messages: list[str] = []
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        if profiler:
            profiler.enable()
        cost = measure_driver(simulation, window, Path(folder), messages)
        if profiler and profile:
            profiler.disable()
            profiler.dump_stats(profile)
    _print({"simulation": dataclasses.asdict(simulation), "driver": dataclasses.asdict(cost)}, messages, as_json)


@app.command()
def record(
    trials: TrialsOption = 1000,
    workers: WorkersOption = 64,
    sampler: SamplerOption = "tpe",
    pruner: PrunerOption = "none",
    storage: StorageOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare the points in MLflow at the end of a study with what its trials reported."""
    simulation = Simulation(workers, 0, trials, sampler, pruner, seed=seed, storage=storage)
    messages: list[str] = []
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        run = run_simulation(simulation, Path(folder), messages)
        check_budget(run)
        found = check_record(run)
    _print({"simulation": dataclasses.asdict(simulation), "record": dataclasses.asdict(found)}, messages, as_json)


@app.command()
def turns(
    trials: Annotated[int, typer.Option(help="trials by each backend", min=2)] = 30,
    epochs: Annotated[int, typer.Option(help="epochs of a trial", min=2)] = 9,
    as_json: JsonOption = False,
) -> None:
    """Measure an epoch's round trip and the overhead of a trial, with threads, processes and Ray on one node."""
    found = measure_backends(trials, epochs)
    _print(found, [], as_json)


@app.command()
def nodes(
    runs: Annotated[int, typer.Option(help="studies, each of which loses a node", min=1)] = 10,
    trials: Annotated[int, typer.Option(help="trials of a study", min=1)] = 5,
    folder: Annotated[Path | None, typer.Option(help="keep the stores in this new folder")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Kill a node of a Ray cluster in each of some studies while another joins; exit code 1 if anything is lost."""
    with tempfile.TemporaryDirectory(prefix="cluster-") as temporary:
        losses = lose_nodes(seed, runs, trials, folder or Path(temporary))
    _print({f"run {loss.seed}": dataclasses.asdict(loss) for loss in losses}, [], as_json)
    problems = [f"run {loss.seed}: {problem}" for loss in losses for problem in loss.problems]
    if problems:
        sys.exit("\n".join(problems))


@app.command("all")
def measure_everything(
    only: Annotated[list[str] | None, typer.Option(help=f"one of: {'; '.join(MEASUREMENTS)}")] = None,
    path: Annotated[Path | None, typer.Option(help="the file of the results; it keeps what is not measured")] = None,
) -> None:
    """Make all measurements, or some of them, and write them into a dated file of benchmarks/results."""
    found = measure_all(path or default_path(), only or MEASUREMENTS, typer.echo)
    typer.echo(table(found))


def _print(found: dict[str, Any], messages: list[str], as_json: bool) -> None:
    about = {"machine": machine(), "versions": versions(), **found, "messages": messages}
    if as_json:
        typer.echo(json.dumps(about))
        return
    for group, value in found.items():
        typer.echo(f"{group}: " + ", ".join(f"{name} {each}" for name, each in value.items()))
    for message in messages:
        typer.echo(f"  {message}")


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", module="optuna")
    app()
