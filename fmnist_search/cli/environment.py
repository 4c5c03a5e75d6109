"""The environment of a search: the MLflow UI, the outbox, the folder of the project, the images, the machine."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmnist_search.cli.app import (
    DataDirOption,
    JsonOption,
    StorageOption,
    TrackingUriOption,
    WorkdirOption,
    app,
    command_settings,
    image_source,
    make_workspace,
)
from fmnist_search.cli.streams import write_output
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import DATASETS, DEFAULT_DATASET, get_dataset

if TYPE_CHECKING:
    from fmnist_search.workspace import Workspace


@app.command()
def ui(
    context: typer.Context,
    port: Annotated[int, typer.Option(help="Port of the server on this machine.", min=1, max=65535)] = 5000,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
) -> None:
    """Start the MLflow UI for the store of this folder."""
    from fmnist_search.cli.output import stderr, stdout
    from fmnist_search.text import without_credentials
    from fmnist_search.tracking.artifact_locations import check_project
    from fmnist_search.tracking.store import MlflowStore
    from fmnist_search.workflows.lookup import latest_run
    from fmnist_search.workspace import sqlite_path

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    uri = workspace.tracking_uri
    if not uri.startswith("http"):
        _check_port(port)
    database = sqlite_path(uri)
    is_new = database is not None and not database.exists()
    run_id = latest_run(workspace)
    server = without_credentials(uri) if uri.startswith("http") else f"http://127.0.0.1:{port}"
    page = MlflowStore(uri, "fmnist-search").runs_page_url(server, run_id)
    if uri.startswith("http"):
        stdout.print(page)
        return
    if is_new:
        stderr.print(f"{database}: there was no store here, and an empty one was made", markup=False)
    try:
        check_project(uri)
    except UserError as error:  # parameters and metrics can be seen all the same
        stderr.print(f"the UI cannot show artifacts: {error}", markup=False)
    hosts = f"localhost:{port},127.0.0.1:{port}"
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # every user of the machine can read the arguments of a process
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--allowed-hosts", hosts]
    # One worker starts in 7 s instead of 20 (2 cores, once each). The jobs are for language models.
    arguments += ["--workers", "1"]
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ["PYTHONSAFEPATH"] = "1"  # the server and its processes import nothing from the current folder

    def announce() -> None:
        stdout.print(page)
        write_output()
        stderr.print("Ctrl-C ends the UI")

    command = [sys.executable, "-m", "mlflow", "ui", *arguments]
    code = command_settings(context).run_server(command, f"{server}/health", announce)
    if code:
        raise UserError(f"the UI has ended with the exit code {code}; see its messages above", exit_code=1)


def _check_port(port: int) -> None:
    """Check that no server uses a port of this machine.

    Raises:
        UserError: if one does.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended does not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"--port {port}: cannot be used ({error.strerror}); give another") from None


@app.command()
def dashboard(
    context: typer.Context,
    port: Annotated[int, typer.Option(help="Port of the server on this machine.", min=1, max=65535)] = 8080,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
) -> None:
    """Start Optuna Dashboard on the studies of this folder, to look at them; it needs the extra `dashboard`."""
    from fmnist_search.cli.output import stderr, stdout
    from fmnist_search.search.dashboard import dashboard_server

    with dashboard_server(make_workspace(tracking_uri, workdir, storage=storage).storage_url, port) as server:
        stdout.print(f"http://127.0.0.1:{port}/dashboard")
        stderr.print("shows studies while they run and changes nothing; Ctrl-C ends it")
        command_settings(context).serve(server)


@app.command()
def sync(
    forget: Annotated[bool, typer.Option("--forget", help="Drop the events that MLflow rejected.")] = False,
    rebuild: Annotated[
        str | None,
        typer.Option(
            help="Study whose runs are written again, because MLflow has lost them.",
            metavar="STUDY",
            show_default=False,
        ),
    ] = None,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send MLflow the events that it missed while it was unreachable.

    Each search sends them as soon as it can; this command sends what the last search could not. After MLflow's database
    was replaced by an older copy, --rebuild writes the runs of a study again from Optuna's storage and the kept events.
    """
    from fmnist_search.cli.output import print_json, stdout
    from fmnist_search.workflows.sending import sync as send

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    if rebuild is not None:
        _rebuild(rebuild, workspace, as_json=as_json)
        return
    events = send(forget=forget, workspace=workspace)
    if as_json:
        print_json({"events": events})
    else:
        stdout.print(f"MLflow has everything; {events} events were sent" if events else "MLflow has everything")


def _rebuild(study: str, workspace: Workspace, *, as_json: bool) -> None:
    from fmnist_search.cli.output import print_json, stdout
    from fmnist_search.workflows.rebuilding import rebuild

    record = rebuild(study, workspace=workspace)
    counts = {"kept": record.kept, "from_outbox": record.from_outbox, "from_optuna": record.from_optuna}
    if as_json:
        print_json({"events": record.events, "rejected": record.rejected, "run_id": record.run_id, **counts})
        return
    stdout.print(
        f"{study}: below the run {record.run_id} are {record.kept} runs that MLflow still had, {record.from_outbox} "
        f"from the kept events and {record.from_optuna} from Optuna's storage; `fmnist-search promote` registers its "
        "best again" + (f"; {record.rejected} events of other lost runs are set aside" if record.rejected else ""),
        markup=False,
    )


@app.command()
def relocate(
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rewrite the addresses of artifacts after the folder of a project was moved or copied.

    MLflow stores absolute addresses, which name the old folder. They are rewritten for the artifacts in mlruns/ beside
    the store, which is a SQLite file. A copy of the file is kept beside it.
    """
    from fmnist_search.cli.output import print_json, stderr, stdout
    from fmnist_search.cli.serialization import relocation_to_dict
    from fmnist_search.tracking import relocation

    result = relocation.relocate(make_workspace(tracking_uri, workdir, storage=storage))
    for path in result.kept:
        state = "exists" if path.exists() else "is missing"
        stderr.print(f"left: {path}, which {state}; {result.project} has no copy of it", markup=False)
    if result.uncopied:
        what = f"{len(result.uncopied)} folders, such as {result.uncopied[0]}"
        stderr.print(f"not copied: {what}; copy them to the same place in {result.project}", markup=False)
    if as_json:
        print_json(relocation_to_dict(result))
    elif result.changed:
        rows = ", ".join(f"{table.replace('_', ' ')}: {count}" for table, count in result.changed.items())
        former = ", ".join(map(str, result.old_projects))
        events = f", events on their way: {result.events}" if result.events else ""
        stdout.print(f"{former} -> {result.project}: {rows}{events}; {result.backup} is as before", markup=False)
    else:
        stdout.print("nothing to rewrite", markup=False)


@app.command()
def data(
    dataset: Annotated[
        str, typer.Argument(help=f"Name of the dataset: {', '.join(DATASETS)}, or one of your own.")
    ] = DEFAULT_DATASET,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Folder of images of your own, stored as a dataset of this name: IDX files, or a folder of image "
            "files for each class, also below train and test.",
            show_default=False,
        ),
    ] = None,
    resize: Annotated[bool, typer.Option("--resize", help="With --from: bring images to 28 by 28 pixels.")] = False,
    invert: Annotated[bool, typer.Option("--invert", help="With --from: images are dark on light.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find or download the images of a dataset, and verify their checksums.

    Examples:

      fmnist-search data

      fmnist-search data mnist

      fmnist-search data shapes --from pictures
    """
    from fmnist_search.cli.output import print_json, stdout
    from fmnist_search.data.files import verify_files

    if from_:
        _store_own_images(dataset, from_, resize=resize, invert=invert)
    elif resize or invert:
        raise UserError("data: --resize and --invert are for images of your own; add --from FOLDER")
    spec = get_dataset(dataset)
    source = image_source(data_dir)
    files = verify_files(dataset, source)
    folder = data_dir or source.cache / dataset
    if as_json:
        result = {"dataset": dataset, "place": str(folder), "digest": spec.digest, "bytes": files}
        print_json({**result, "classes": spec.classes})
    else:
        stdout.print(f"{dataset}: {len(files)} files, {sum(files.values()):,} bytes, verified, in {folder}")


def _store_own_images(dataset: str, folder: Path, *, resize: bool, invert: bool) -> None:
    from fmnist_search.cli.output import print_message
    from fmnist_search.cli.own_images import read_own_images
    from fmnist_search.data.own_datasets import save_dataset

    own = read_own_images(folder, resize=resize, invert=invert, on_message=print_message)
    save_dataset(dataset, own.classes, own.training, own.test)
    if own.repeated:
        print_message(f"{folder}: {own.repeated} test images equal training images, so tests flatter a network")
    counts = f"{len(own.training.labels):,} training and {len(own.test.labels):,} test images"
    print_message(f"{dataset}: {counts} of {len(own.classes)} classes: {', '.join(own.classes)}")


@app.command()
def doctor(
    study: Annotated[
        str | None,
        typer.Option(help="Study whose trials, runs, files and model versions are compared.", show_default=False),
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="With --study: set right what differs.")] = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check what a search needs: library versions, device, images and stores.

    With --study, find where Optuna's storage and MLflow disagree about a study.

    Examples:

      fmnist-search doctor

      fmnist-search doctor --study quick --repair
    """
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import check_to_dict

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    if study is not None:
        _check_study(study, workspace, repair=repair, as_json=as_json)
        return
    if repair:
        raise UserError("--repair: needs the name of a study; add --study NAME")
    from fmnist_search.workflows.doctor import run_checks

    checks = run_checks(workspace)
    if as_json:
        output.print_json([check_to_dict(check) for check in checks])
    else:
        rows = [["ok" if check.ok else "FAILED", check.subject, check.finding] for check in checks]
        output.print_table(output.make_table(["", "what", "finding"], rows))
    if not all(check.ok for check in checks):
        raise typer.Exit(output.ExitCode.UNEXPECTED_ERROR)


def _check_study(study: str, workspace: Workspace, *, repair: bool, as_json: bool) -> None:
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import agreement_to_dict
    from fmnist_search.workflows.repairing import check_agreement

    agreement = check_agreement(study, workspace=workspace, repair=repair)
    if as_json:
        output.print_json(agreement_to_dict(agreement))
    elif agreement.remaining or agreement.repaired:
        rows = [["repaired", finding.subject, f"{finding.text}: {action}"] for finding, action in agreement.repaired]
        rows += [
            ["differs", finding.subject, f"{finding.text}; {finding.remedy or '--repair sets it right'}"]
            for finding in agreement.remaining
        ]
        output.print_table(output.make_table(["", "what", "finding"], rows))
    else:
        output.stdout.print(f"{study}: Optuna's storage and MLflow agree", markup=False)
    if agreement.remaining:
        raise typer.Exit(output.ExitCode.UNEXPECTED_ERROR)
