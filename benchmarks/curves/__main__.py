"""`python -m benchmarks.curves record|replay|plot|carry|windows|ask|decide`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fmnist_search.errors import UserError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
CURVES_FOLDER = Path(__file__).parent

CurvesOption = Annotated[Path, typer.Option(help="File of the recorded curves.")]
StudyOption = Annotated[Path, typer.Option(help="Study in whose space they are recorded.")]
WorkersOption = Annotated[int, typer.Option(help="Processes, each on one core.", min=1)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def record(
    study: StudyOption = CURVES_FOLDER / "cpu.toml",
    curves: CurvesOption = CURVES_FOLDER / "cpu.jsonl",
    plan: Annotated[
        str,
        typer.Option(help="What is trained besides random recipes: annealed (cpu.toml) or neighbours (the others)."),
    ] = "annealed",
    recipes: Annotated[int, typer.Option(help="Number of random recipes.", min=1)] = 200,
    workers: WorkersOption = 2,
    device: Annotated[str, typer.Option(help="cpu, or cuda (not tested).")] = "cpu",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the images.", show_default=False)] = None,
) -> None:
    """Record the curves of random recipes, or continue a recording."""
    from benchmarks.curves.plans import PLANS
    from benchmarks.curves.record import record as record_curves

    if plan not in PLANS:
        raise UserError(f"--plan {plan!r}: is not a plan; take one of {', '.join(PLANS)}")
    for curve in record_curves(study, curves, PLANS[plan], recipes, workers, data_dir, device):
        last = f"{curve.val_accuracy[-1]:.2%}" if curve.val_accuracy else curve.failed
        typer.echo(f"{curve.recipe_number:4d} {curve.kind:<12} {last}  {sum(curve.seconds):6.1f} s")


@app.command()
def replay(
    study: StudyOption = CURVES_FOLDER / "cpu.toml",
    curves: CurvesOption = CURVES_FOLDER / "cpu.jsonl",
    seeds: Annotated[
        str, typer.Option(help="choosing: 0 to 199, to choose settings; judging: 1000 to 1199, to judge the choice.")
    ] = "judging",
    replays: Annotated[int, typer.Option(help="Replays of each method, with the first seeds.", min=2, max=200)] = 200,
    running: Annotated[int, typer.Option(help="Simulated workers, each with one trial at a time.", min=1)] = 1,
    clock: Annotated[str, typer.Option(help="Unit of compute and time: epochs or seconds.")] = "epochs",
    compute: Annotated[float, typer.Option(help="Budget of a replay, in mean full trainings.")] = 30.0,
    only: Annotated[str, typer.Option(help="Only methods whose name contains this text, or one of TEXT|TEXT.")] = "",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Compare settings of the default pair instead of all pairs.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also add the results to this file, as JSON.", show_default=False)
    ] = None,
    workers: WorkersOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Replay searches on recorded curves: regret against compute."""
    from benchmarks.curves import figures
    from benchmarks.curves import replay as bench
    from benchmarks.curves.methods import select_methods
    from benchmarks.curves.recorded import RecordedRecipes
    from benchmarks.curves.table import CurveTable
    from fmnist_search.config.study_config import StudyConfig

    if clock not in ("seconds", "epochs"):
        raise UserError(f"--clock {clock!r}: is not a clock; take seconds or epochs")
    if seeds not in bench.SEEDS:
        raise UserError(f"--seeds {seeds!r}: are no seeds of this benchmark; take {' or '.join(bench.SEEDS)}")
    methods, numbers = select_methods(only, sweep), bench.SEEDS[seeds][:replays]
    table = CurveTable.read(curves, StudyConfig.load(study))
    recorded = RecordedRecipes(table, clock)
    targets = figures.Targets.of(recorded)
    about = {
        "curves": curves.name, "recorded_on": table.header.machine, "versions": dict(table.header.versions),
        "random_recipes": recorded.random_count, "recipes": len(recorded.curves), "targets": asdict(targets),
        "seeds": f"{seeds}: {numbers[0]} to {numbers[-1]}",
        "running": running, "clock": clock, "compute": compute,
    }  # fmt: skip
    if not as_json:
        typer.echo("\n".join([*figures.describe(about), figures.table_head()]))
    rows = {}
    for method, traces in bench.replay_all(recorded, methods, numbers, compute, running, workers):
        rows[method.name] = figures.summarize(traces, targets, running, compute)
        if not as_json:
            typer.echo("\n".join(figures.table_lines(method.name, rows[method.name])))
        if out:
            figures.save_results(out, about, rows)
    if as_json:
        typer.echo(json.dumps({**about, "methods": rows}, indent=1))


@app.command()
def plot(
    results: Annotated[Path, typer.Argument(help="File that `replay --out` has written.")],
    figure: Annotated[Path, typer.Argument(help="File of the picture.")],
    only: Annotated[str, typer.Option(help="Only methods whose name contains this text, or one of TEXT|TEXT.")] = "",
    running: Annotated[int, typer.Option(help="Simulated workers of the replays.", min=1)] = 1,
) -> None:
    """Plot the regrets of replays with the seeds for judging."""
    from benchmarks.curves.figures import plot_results

    plot_results(results, only, running).savefig(figure, dpi=120)


@app.command()
def carry(
    study: StudyOption = CURVES_FOLDER / "cpu.toml",
    curves: CurvesOption = CURVES_FOLDER / "cpu.jsonl",
    as_json: JsonOption = False,
) -> None:
    """Measure how well early epochs predict late ones, and a constant learning rate an annealed one."""
    from benchmarks.curves import carry as bench
    from benchmarks.curves.table import CurveTable
    from fmnist_search.config.study_config import StudyConfig

    found = bench.analyze(CurveTable.read(curves, StudyConfig.load(study)))
    typer.echo(json.dumps(asdict(found), indent=1) if as_json else bench.format_analysis(found))


@app.command()
def windows(
    study: StudyOption = CURVES_FOLDER / "cpu.toml",
    curves: CurvesOption = CURVES_FOLDER / "cpu.jsonl",
    sizes: Annotated[str, typer.Option(help="Values of sampler.window; 0 takes all trials.")] = "0,100,200,300,500",
    trials: Annotated[int, typer.Option(help="Trials of a search.", min=4)] = 1000,
    running: Annotated[int, typer.Option(help="Trials at a time.", min=1)] = 8,
    seeds: Annotated[int, typer.Option(help="Searches with each window.", min=1)] = 4,
    out: Annotated[
        Path | None, typer.Option(help="Append each search to this file, as a line of JSON.", show_default=False)
    ] = None,
) -> None:
    """Compare windows of TPE in long searches on a surrogate of the recorded curves."""
    from benchmarks.curves import windows as bench
    from benchmarks.curves.surrogate import SurrogateCurves
    from benchmarks.curves.table import CurveTable
    from fmnist_search.config.study_config import StudyConfig

    surrogate = SurrogateCurves(CurveTable.read(curves, StudyConfig.load(study)))
    typer.echo(f"surrogate: error {surrogate.loo_error:.2f} points by leave-one-out, spread {surrogate.spread:.2f}")
    for row in bench.compare_windows(surrogate, [int(size) for size in sizes.split(",")], seeds, trials, running):
        line = json.dumps(row)
        typer.echo(line)
        if out:
            with out.open("a") as file:
                file.write(line + "\n")


@app.command()
def ask(
    known: Annotated[str, typer.Option(help="Trials that have ended.")] = "100,1000,5000,10000",
    running: Annotated[str, typer.Option(help="Trials that run.")] = "0,64,1000",
    sizes: Annotated[str, typer.Option(help="Values of sampler.window; 0 takes all trials.")] = "0,300",
) -> None:
    """Measure what TPE takes for a suggestion: median CPU milliseconds in memory, by window and number of trials."""
    from benchmarks.curves.windows import measure_asks

    for cost in measure_asks(*([int(value) for value in values.split(",")] for values in (known, running, sizes))):
        typer.echo(
            f"{cost.known:6d} known, {cost.running:4d} running, window {cost.window:4d}: {cost.milliseconds:7.1f} ms"
        )


@app.command()
def decide(known: Annotated[str, typer.Option(help="Trials that have begun.")] = "100,300,1000") -> None:
    """Measure what freeze-thaw takes for a decision: median CPU milliseconds in memory, by number of trials."""
    from benchmarks.curves.decisions import measure_decisions

    for count, milliseconds in measure_decisions([int(value) for value in known.split(",")]):
        typer.echo(f"{count:6d} trials: {milliseconds:7.1f} ms")


def main() -> None:
    """Run a command; an error of the user is printed in one line each."""
    try:
        app()
    except UserError as error:
        sys.exit("\n".join(f"error: {line}" for line in error.lines))


if __name__ == "__main__":
    main()
