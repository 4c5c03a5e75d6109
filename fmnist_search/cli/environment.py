"""What stands around a search: the MLflow UI, the images, the machine."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fmnist_search.cli.app import (
    DataDirOption,
    JsonOption,
    TrackingUriOption,
    WorkdirOption,
    app,
    image_source,
    make_workspace,
)
from fmnist_search.recipe.datasets import DATASETS, DEFAULT_DATASET, get_dataset


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
) -> None:
    """Open the MLflow UI on this folder's store."""
    from fmnist_search.cli.output import stdout
    from fmnist_search.tracking.store import MlflowStore
    from fmnist_search.workflows.lookup import latest_run

    workspace = make_workspace(tracking_uri, workdir)
    uri = workspace.tracking_uri
    run_id = latest_run(workspace=workspace)
    server = uri if uri.startswith("http") else f"http://127.0.0.1:{port}"
    stdout.print(MlflowStore(uri, "fmnist-search").runs_page_url(server, run_id))
    if uri.startswith("http"):
        return
    sys.stdout.flush()
    hosts = f"localhost:{port},127.0.0.1:{port}"
    arguments = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--allowed-hosts", hosts]
    # For one person: there in 7 s and not in 20 (2 cores, once each), and smaller. The jobs are for language models.
    arguments += ["--workers", "1"]
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *arguments])


@app.command()
def sync(
    forget: Annotated[bool, typer.Option("--forget", help="Drop what MLflow refused.")] = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send MLflow what it missed while it was out of reach.

    Every process that searches does so by itself; this is for what the last of them had to leave.
    """
    from fmnist_search.cli.output import show_json, stdout
    from fmnist_search.workflows.study.api import sync as send

    events = send(forget=forget, workspace=make_workspace(tracking_uri, workdir))
    if as_json:
        show_json({"events": events})
    else:
        stdout.print(f"MLflow has everything; {events} events were sent" if events else "MLflow has everything")


@app.command()
def data(
    dataset: Annotated[str, typer.Argument(help=f"{', '.join(DATASETS)}.")] = DEFAULT_DATASET,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the images of a dataset, or download them, and check every byte.

    Examples:

      fmnist-search data

      fmnist-search data mnist
    """
    from fmnist_search.cli.output import show_json, stdout
    from fmnist_search.data.files import verify_files

    known = get_dataset(dataset)
    source = image_source(data_dir)
    files = verify_files(dataset, source)
    place = data_dir or source.cache / dataset
    if as_json:
        found = {"dataset": dataset, "place": str(place), "digest": known.digest, "bytes": files}
        show_json({**found, "classes": known.classes})
    else:
        stdout.print(f"{dataset}: {len(files)} files, {sum(files.values()):,} bytes, verified, in {place}")


@app.command()
def doctor(tracking_uri: TrackingUriOption = None, workdir: WorkdirOption = None, as_json: JsonOption = False) -> None:
    """Check what a search needs, from versions to stores."""
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import check_to_dict
    from fmnist_search.workflows.doctor import run_checks

    checks = run_checks(make_workspace(tracking_uri, workdir))
    if as_json:
        output.show_json([check_to_dict(check) for check in checks])
    else:
        rows = [["ok" if check.ok else "FAILED", check.subject, check.finding] for check in checks]
        output.print_table(output.make_table(["", "what", "finding"], rows))
    if not all(check.ok for check in checks):
        raise typer.Exit(output.ExitCode.UNEXPECTED_ERROR)
