"""`python -m benchmarks.curves record|replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
HERE = Path(__file__).parent


@app.command()
def record(
    study: Annotated[Path, typer.Argument(help="Study file whose space is recorded.")] = HERE / "cpu.toml",
    out: Annotated[Path, typer.Option(help="File that the curves are appended to.")] = HERE / "cpu.jsonl",
    recipes: Annotated[int, typer.Option(help="How many random recipes.", min=1)] = 200,
    workers: Annotated[int, typer.Option(help="Trainings at once, one core each.", min=1)] = 2,
    data_dir: Annotated[Path | None, typer.Option(help="Folder that holds the images.", show_default=False)] = None,
) -> None:
    """Record the curves of random recipes, or go on recording."""
    from benchmarks.curves.record import record as carry_out

    for curve in carry_out(study, out, recipes, workers, data_dir):
        last = f"{curve.val_accuracy[-1]:.2%}" if curve.val_accuracy else curve.failed
        typer.echo(f"{curve.recipe_number:4d} {curve.kind:<12} {last}  {sum(curve.seconds):6.1f} s")


@app.callback()
def _group() -> None:
    """Learning curves: recorded once, replayed in seconds."""


if __name__ == "__main__":
    app()
