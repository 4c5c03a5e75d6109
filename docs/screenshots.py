"""Take the screenshots of the docs from a study: `python -m docs.screenshots`, in the folder in which it ran."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from tests.integration.mlflow_ui import MlflowUi, epoch_steps, launch_browser
from tests.integration.servers import running_ui

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1280, 800
MAX_BYTES = 150_000
COLOR_COUNTS = (256, 128, 64, 32)
COMPARED_TRIALS = 5


def main(
    folder: Annotated[Path, typer.Option(help="Folder in which the study ran, with its mlflow.db.")] = Path(),
    study: Annotated[str, typer.Option(help="Name of the study, which needs a champion.")] = "quick",
    experiment: Annotated[str, typer.Option(help="Experiment of the study in MLflow.")] = "fmnist-search",
    model: Annotated[str, typer.Option(help="Name of the registered model.")] = "fmnist-search",
    out: Annotated[Path, typer.Option(help="Folder for the screenshots.")] = IMAGES,
) -> None:
    """Take screenshots of a study in the MLflow UI."""
    runs = runs_of(folder.resolve(), study, experiment)
    run_id = str(runs[0].info.run_id)
    out.mkdir(parents=True, exist_ok=True)
    with (
        running_ui(folder.resolve()) as address,
        launch_browser() as chromium,
        chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT}) as page,
    ):
        ui = MlflowUi(page, address)

        ui.open_runs()
        ui.expand(study)
        save(ui, out / "mlflow-runs.png")

        ui.open_run(run_id)
        save(ui, out / "mlflow-study.png")

        ui.open_artifact(run_id, "plots/study.html")
        ui.wait_for_plotly_page()
        # The path on the machine that took the screenshot is of no use to readers.
        page.get_by_text("Path: ").evaluate("line => line.style.visibility = 'hidden'")
        save(ui, out / "mlflow-explore.png")

        ui.open_runs()
        ui.expand(study)
        ui.compare_runs([str(trial.info.run_name) for trial in best_of(runs)[:COMPARED_TRIALS]])
        ui.add_axis("Parameters", "optimizer.learning_rate")
        save(ui, out / "mlflow-compare.png")

        ui.open_runs(charts=True)
        ui.expand(study)
        ui.wait_for_curves(epoch_steps(runs))
        save(ui, out / "mlflow-curves.png")

        ui.open_model(model, int(champion_of(folder.resolve(), model)))
        save(ui, out / "mlflow-champion.png")


def runs_of(folder: Path, study: str, experiment: str) -> list[Run]:
    """Return the runs of a study, the run of the study itself first."""
    client = client_of(folder)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], f"tags.study = '{study}'", max_results=1000) if found else []
    if not runs:
        raise typer.BadParameter(f"{folder} has no study {study!r}; run it there first", param_hint="--study")
    return sorted(runs, key=lambda run: run.data.tags["kind"] != "study")


def best_of(runs: list[Run]) -> list[Run]:
    """Return the completed trials, best first."""
    trials = [run for run in runs if (run.data.tags["kind"], run.data.tags["state"]) == ("trial", "completed")]
    return sorted(trials, key=lambda trial: float(trial.data.metrics["best/val_accuracy"]), reverse=True)


def champion_of(folder: Path, model: str) -> str:
    """Return the version of the champion."""
    return str(client_of(folder).get_model_version_by_alias(model, "champion").version)


def client_of(folder: Path) -> MlflowClient:
    """Return a client of the store in a folder."""
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def save(ui: MlflowUi, path: Path) -> None:
    """Save a screenshot with few enough colors that the file is small."""
    picture = Image.open(io.BytesIO(ui.stable_screenshot())).convert("RGB")
    for colors in COLOR_COUNTS:
        picture.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < MAX_BYTES:
            return
    raise typer.BadParameter(f"{path} is still larger than {MAX_BYTES:,} bytes")


if __name__ == "__main__":
    typer.run(main)
