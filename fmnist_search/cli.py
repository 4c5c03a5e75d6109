"""The command line: parse, call, print. Heavy imports stand inside the commands, so that `--help` is instant."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.config import StudyConfig
    from fmnist_search.results import StudySummary

app = typer.Typer(
    name="fmnist-search",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Hyperparameter search over convolutional networks for Fashion-MNIST, on record in MLflow.\n\n"
    "Start with:  fmnist-search search studies/quick.toml",
)

TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow store; by default MLFLOW_TRACKING_URI, else mlflow.db here.", show_default=False),
]
Workdir = Annotated[
    str | None,
    typer.Option(help="Our own files; by default FMNIST_SEARCH_HOME, else fmnist-search/ beside the store."),
]
DataDir = Annotated[Path | None, typer.Option(help="Folder that holds the dataset's files.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Override a key of the file, or pin a hyperparameter; again for more."
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default=False)]
Threads = Annotated[int | None, typer.Option(help="Intra-op threads on a CPU.", min=0, show_default=False)]
StudyName = Annotated[str | None, typer.Argument(help="Name of a study; by default the latest.", show_default=False)]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: every mistake of a user becomes one clear line and an exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.argv = ["fmnist-search", *arguments]  # the command that gets recorded, however we were started
    debug = "--debug" in arguments
    os.umask(0o077)  # MLflow makes its database readable by everybody
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="fmnist-search")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        sys.exit(_report(error))


def _report(error: Exception) -> int:
    from fmnist_search.console import Exit, show_error

    if isinstance(error, UserError):
        show_error(error)
        return error.exit_code
    first = next(iter(str(error).splitlines()), "")
    show_error(UserError(f"unexpected {type(error).__name__}: {first}; run it again with --debug to see where"))
    return Exit.UNEXPECTED


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback; anywhere on the line.")] = False,
) -> None:
    """`main` looks for --debug itself, wherever it stands; here it is for the help."""


# ------------------------------------------------------------------------------------------ search


@app.command()
def search(
    study: Annotated[Path, typer.Argument(help="Study file, such as studies/quick.toml.")],
    name: Annotated[str | None, typer.Option(help="Another name for the study.", show_default=False)] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all.", show_default=False)] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of searching in all.", show_default=False)] = None,
    sampler: Annotated[str | None, typer.Option(help="tpe or random.", show_default=False)] = None,
    pruner: Annotated[str | None, typer.Option(help="halving, median or none.", show_default=False)] = None,
    device: Device = None,
    threads: Threads = None,
    settings: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Put an earlier study of this name aside.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Run a study, or go on with it; then find its champion.

    Budgets are totals: the same command again continues and does not add.

    Examples:

      fmnist-search search studies/quick.toml

      fmnist-search search studies/quick.toml --trials 30

      fmnist-search search mine.toml --set optimizer.name=sgd --name sgd

      fmnist-search search studies/baseline.toml --dry-run
    """
    from fmnist_search.config import StudyConfig, parse_assignment

    options = {
        "name": name,
        "budget.trials": trials,
        "budget.minutes": minutes,
        "sampler": sampler,
        "pruner": pruner,
        "execution.device": device,
        "execution.threads": threads,
    }
    overrides = {key: value for key, value in options.items() if value is not None}
    overrides |= dict(map(parse_assignment, settings or []))
    config = StudyConfig.load(study, overrides)
    if dry_run:
        _show_preview(config, as_json)
        return
    from fmnist_search.console import StudyDisplay, show_json
    from fmnist_search.study import run_study

    with StudyDisplay(config) as display:
        summary = run_study(
            config, tracking_uri=tracking_uri, workdir=workdir, data_dir=data_dir, fresh=fresh, listener=display
        )
    if as_json:
        show_json(summary)
    _close(summary, f"fmnist-search search {study}", quiet=as_json)


def _show_preview(config: StudyConfig, as_json: bool) -> None:
    from fmnist_search import console
    from fmnist_search.search.space import searched
    from fmnist_search.study import preview

    shown = preview(config)
    if as_json:
        recipes = [
            {"recipe": recipe.flat(), "parameters": summary.parameters, "mult_adds": summary.mult_adds}
            for recipe, summary in shown.recipes
        ]
        console.show_json({"study": config.model_dump(exclude_none=True), "recipes": recipes, "seconds": shown.seconds})
        return
    console.out.print(config.to_toml(), markup=False)
    names = searched(config.space)
    rows = [
        [recipe.label, f"{s.parameters:,}", f"{s.mult_adds / 1e6:.1f} M", *_values(recipe.flat(), names)]
        for recipe, s in shown.recipes
    ]
    short = console.short_names(names)
    console.show_table(console.table(["network", "parameters", "multiply-adds", *short], rows, "The first recipes"))
    if shown.seconds is not None:
        console.out.print(
            f"\nabout {console.minutes(shown.seconds)} of training if nothing is pruned; nothing was started"
        )


def _values(flat: dict[str, Any], names: list[str]) -> list[str]:
    from fmnist_search.report import short_text

    return [short_text(flat[name]) if name in flat else "-" for name in names]


def _close(summary: StudySummary, command: str, *, quiet: bool, searched: bool = True) -> None:
    """The last lines of a search: what was found, where to look, what to do next; and the exit code."""
    from fmnist_search.console import Exit, out, percent, talk
    from fmnist_search.results import Ending, State

    if summary.ended_by is Ending.INTERRUPTED:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `mlflow run` sends one after the other; we are leaving
        talk.print(f"interrupted; nothing is lost: `{command}` goes on from here")
        raise typer.Exit(Exit.INTERRUPTED)
    if summary.ended_by is Ending.FAILURES:
        failed = [row for row in summary.trials if row.state is State.FAILED]
        talk.print(f"error: {len(failed)} trials failed, the last because {failed[-1].reason}; see budget.failures")
        raise typer.Exit(Exit.TOO_MANY_FAILURES)
    if summary.best is None:
        talk.print(f"error: no trial of {summary.name!r} has completed; give it more trials or minutes")
        raise typer.Exit(Exit.NOTHING_COMPLETED)
    if searched:
        new = f"{summary.new_trials} new trials" if summary.new_trials else "nothing left to do"
        talk.print(f"{summary.name}: {new}; {summary.ended_by.value}")
    best = f"best trial {summary.best.number} ({summary.best.recipe.label}) at {percent(summary.best.value)}"
    if champion := summary.champion:
        best += (
            f"; {champion.recipe.label} confirmed at {champion.confirmed}, {percent(champion.test.value)} on the test "
            f"images, registered as models:/{champion.model}/{champion.version} ({champion.alias})"
        )
    last = talk if quiet else out
    last.print(f"{summary.name}: {best}; browse it with `fmnist-search ui`, next `fmnist-search leaderboard`")


# ----------------------------------------------------------------------------------- single trainings


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe file.", show_default=False)] = None,
    from_run: Annotated[str | None, typer.Option(help="Train this MLflow run's recipe.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs.", show_default=False)] = None,
    device: Device = None,
    threads: Threads = None,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16, or auto for a probe.")] = None,
    settings: Set = None,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Train one recipe without a study, on record in MLflow.

    Examples:

      fmnist-search train recipe.toml --set optimizer.learning_rate=0.01

      fmnist-search train --from-run 4f1c... --epochs 18
    """
    from fmnist_search import training
    from fmnist_search.config import parse_assignment, read_recipe
    from fmnist_search.console import Exit, TrainingDisplay, out, percent, show_json, talk
    from fmnist_search.places import tracking_uri as resolve
    from fmnist_search.results import State
    from fmnist_search.tracking import Tracking

    overrides = dict(map(parse_assignment, settings or [])) | ({"epochs": epochs} if epochs else {})
    if recipe and not from_run:
        chosen = read_recipe(recipe, overrides)
    elif from_run and not recipe:
        chosen = Tracking(resolve(tracking_uri), "fmnist-search").recipe_of(from_run).replace(overrides)
    else:
        raise UserError("train: give either a recipe file or --from-run RUN_ID")
    result, run_id = training.train(
        chosen,
        tracking_uri=tracking_uri,
        workdir=workdir,
        data_dir=data_dir,
        device=device or "auto",
        threads=threads or 0,
        precision=precision,
        listener=TrainingDisplay(),
    )
    if as_json:
        show_json({"run_id": run_id, "state": result.state, "epochs": result.epochs, "parameters": result.parameters})
    if result.state is State.FAILED:
        raise UserError(f"train: {result.reason}; the run {run_id} has the details", exit_code=Exit.NOTHING_COMPLETED)
    if result.state is State.INTERRUPTED:
        talk.print(f"interrupted after {len(result.epochs)} epochs; run {run_id}")
        raise typer.Exit(Exit.INTERRUPTED)
    if not as_json:
        out.print(
            f"{chosen.label}: {percent(result.value)} on validation; run {run_id}, see it with `fmnist-search ui`"
        )


# ---------------------------------------------------------------------------------------- inspecting


@app.command()
def status(
    study: StudyName = None, tracking_uri: TrackingUri = None, workdir: Workdir = None, as_json: AsJson = False
) -> None:
    """How a study stands: its trials, its best, its champion."""
    from fmnist_search.console import out, percent, show_json
    from fmnist_search.results import State

    summary = _summary(study, tracking_uri, workdir)
    if as_json:
        show_json({**{state.value: summary.count(state) for state in State}, **_plain_summary(summary)})
        return
    counts = ", ".join(f"{summary.count(state)} {state.value}" for state in State if summary.count(state))
    out.print(f"{summary.name}: {summary.question}", markup=False)
    out.print(f"trials: {counts or 'none'}; {summary.ended_by.value}")
    if summary.best:
        out.print(f"best: trial {summary.best.number} ({summary.best.recipe.label}) at {percent(summary.best.value)}")
    if champion := summary.champion:
        test = percent(champion.test.value)
        out.print(f"champion: {champion.recipe.label}, {champion.confirmed}, {test} on the test images")


@app.command()
def leaderboard(
    study: StudyName = None,
    top: Annotated[int, typer.Option(help="How many rows.", min=1)] = 10,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    as_json: AsJson = False,
) -> None:
    """The best completed trials of a study."""
    from fmnist_search import console
    from fmnist_search.search.space import searched
    from fmnist_search.study import config_of

    summary = _summary(study, tracking_uri, workdir)
    rows = summary.leaders[:top]
    if as_json:
        console.show_json(rows)
        return
    config = config_of(summary.name, tracking_uri=tracking_uri, workdir=workdir)
    console.show_table(console.leaderboard(rows, searched(config.space)))


def _summary(study: str | None, tracking_uri: str | None, workdir: str | None) -> StudySummary:
    from fmnist_search.study import latest_study
    from fmnist_search.study import status as read

    name = study or latest_study(tracking_uri=tracking_uri, workdir=workdir)
    return read(name, tracking_uri=tracking_uri, workdir=workdir)


def _plain_summary(summary: StudySummary) -> dict[str, Any]:
    return {
        "study": summary.name,
        "question": summary.question,
        "ended_by": summary.ended_by.name.lower(),
        "best": summary.best,
        "champion": summary.champion,
        "run_id": summary.run_id,
    }


# ------------------------------------------------------------------------------------------- models


@app.command()
def promote(
    study: StudyName = None,
    recipes: Annotated[int | None, typer.Option(help="How many of the best recipes.", min=1)] = None,
    seeds: Annotated[int | None, typer.Option(help="Fresh seeds for each.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.", min=1)] = None,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Confirm a study's best recipes and register the best model.

    They are trained again from fresh seeds, and the chosen one's model meets the test images once. The alias
    `champion` moves only where the new model is better by more than the noise.
    """
    from fmnist_search import study as studies
    from fmnist_search.console import TrainingDisplay, show_json

    home = {"tracking_uri": tracking_uri, "workdir": workdir}
    name = study or studies.latest_study(**home)
    config = studies.config_of(name, **home)
    given = {"recipes": recipes, "seeds": seeds, "epochs": epochs}
    changes = {key: value for key, value in given.items() if value is not None}
    if not config.finalists.recipes and not recipes:
        raise UserError(f"study {name!r}: has finalists.recipes = 0; say how many with --recipes")
    settings = config.finalists.model_copy(update=changes)
    summary = studies.promote(name, settings=settings, **home, data_dir=data_dir, listener=TrainingDisplay())
    if as_json:
        show_json(summary.champion)
    _close(summary, f"fmnist-search promote {name!r}", quiet=as_json, searched=False)


@app.command()
def predict(
    images: Annotated[list[Path] | None, typer.Argument(help="Pictures, one garment each.", show_default=False)] = None,
    test_image: Annotated[
        list[int] | None, typer.Option(help="Number of a test image, from 0; repeatable.", min=0, show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="MLflow address of a model; by default the champion.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Bring pictures to 28 by 28 pixels.")] = False,
    invert: Annotated[bool, typer.Option("--invert", help="For dark garments on a light ground.")] = False,
    tracking_uri: TrackingUri = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say what is on a picture, or on a test image.

    Examples:

      fmnist-search predict shoe.png --resize --invert

      fmnist-search predict --test-image 0 --test-image 1
    """
    import numpy as np

    from fmnist_search import console
    from fmnist_search.data import DATASETS, read_test_set
    from fmnist_search.pictures import read_picture

    classes = DATASETS["fashion-mnist"].classes
    names, pixels, truths = [], [], []
    for path in images or []:
        names.append(str(path))
        pixels.append(read_picture(path, resize=resize, invert=invert))
        truths.append("")
    if test_image:
        test = read_test_set("fashion-mnist", _source(data_dir))
        for number in test_image:
            if number >= len(test):
                raise UserError(f"--test-image {number}: there are {len(test):,}; take one from 0 to {len(test) - 1}")
            names.append(f"test image {number}")
            pixels.append(test.pixels[number].numpy())
            truths.append(classes[int(test.labels[number])])
    if not pixels:
        raise UserError("predict: give a picture, or --test-image NUMBER")
    probabilities = _load(model, tracking_uri).probabilities(np.stack(pixels))
    rows = [
        {"image": name, "class": classes[p.argmax()], "probability": float(p.max()), "true": truth or None}
        for name, p, truth in zip(names, probabilities, truths, strict=True)
    ]
    if as_json:
        console.show_json(rows)
        return
    columns = ["image", "class", "probability", *(["true class"] if test_image else [])]
    body = [
        [str(row["image"]), str(row["class"]), f"{row['probability']:.1%}", str(row["true"] or "-")][: len(columns)]
        for row in rows
    ]
    console.show_table(console.table(columns, body))


@app.command()
def evaluate(
    model: Annotated[str | None, typer.Argument(help="MLflow address of a model; by default the champion.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Look at the test images again, and record that.")] = False,
    tracking_uri: TrackingUri = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """A registered model's accuracy on the test images.

    The same weights are tested once: a figure that is on record is shown, and --again takes it anew.
    """
    from fmnist_search import registry
    from fmnist_search.console import out, show_json
    from fmnist_search.data import read_test_set
    from fmnist_search.evaluate import wilson

    address = model or registry.DEFAULT_MODEL
    client = _client(tracking_uri)
    version = registry.version_of(client, address)
    known = registry.test_record(version)
    if known and not again:
        accuracy, evaluations = known
    else:
        loaded = registry.load_model(address)
        test = read_test_set("fashion-mnist", _source(data_dir))
        accuracy = wilson(int((loaded.predict(test.pixels) == test.labels.numpy()).sum()), len(test))
        evaluations = registry.record_test(client, version, accuracy)
    if as_json:
        show_json({"model": address, **vars(accuracy), "accuracy": accuracy.value, "evaluations": evaluations})
        return
    out.print(
        f"{address}: {accuracy.value:.2%} of {accuracy.images:,} test images "
        f"(95 % interval {accuracy.low:.2%} to {accuracy.high:.2%}); tested {evaluations} time{'s' * (evaluations > 1)}"
    )


def _source(data_dir: Path | None) -> Any:
    from fmnist_search.data import Source
    from fmnist_search.places import image_cache

    return Source(image_cache(), data_dir)


def _client(tracking_uri: str | None) -> Any:
    from fmnist_search.places import tracking_uri as resolve
    from fmnist_search.tracking import connect

    return connect(resolve(tracking_uri))


def _load(model: str | None, tracking_uri: str | None) -> Any:
    from fmnist_search import registry

    _client(tracking_uri)
    return registry.load_model(model or registry.DEFAULT_MODEL)


# ------------------------------------------------------------------------------------- surroundings


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
) -> None:
    """Open the MLflow UI on this folder's store."""
    from fmnist_search.console import out
    from fmnist_search.places import tracking_uri as resolve
    from fmnist_search.study import latest_run
    from fmnist_search.tracking import Tracking

    uri = resolve(tracking_uri)
    tracking = Tracking(uri, "fmnist-search")
    run_id = latest_run(tracking_uri=tracking_uri, workdir=workdir)
    experiment_id = (run_id and tracking.experiment_of(run_id)) or tracking.experiment_id
    address = uri if uri.startswith("http") else f"http://127.0.0.1:{port}"
    out.print(f"{address}/#/experiments/{experiment_id}/runs?workflowType=machine_learning")
    if uri.startswith("http"):
        return
    sys.stdout.flush()
    hosts = f"localhost:{port},127.0.0.1:{port}"
    arguments = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--allowed-hosts", hosts]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *arguments])


@app.command()
def data(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Find the images, or download them, and check every byte."""
    from fmnist_search.console import out, show_json
    from fmnist_search.data import DATASETS, verify

    source = _source(data_dir)
    files = verify("fashion-mnist", source)
    place = data_dir or source.cache / "fashion-mnist"
    found = {
        "dataset": "fashion-mnist",
        "place": str(place),
        "digest": DATASETS["fashion-mnist"].digest,
        "bytes": files,
    }
    if as_json:
        show_json(found)
    else:
        out.print(f"fashion-mnist: {len(files)} files, {sum(files.values()):,} bytes, verified, in {place}")


@app.command()
def doctor(tracking_uri: TrackingUri = None, workdir: Workdir = None, as_json: AsJson = False) -> None:
    """Check what a search needs, from versions to stores."""
    from fmnist_search import console
    from fmnist_search.checkup import checkup

    checks = checkup(tracking_uri, workdir)
    if as_json:
        console.show_json(checks)
    else:
        rows = [["ok" if check.ok else "FAILED", check.subject, check.finding] for check in checks]
        console.show_table(console.table(["", "what", "finding"], rows))
    if not all(check.ok for check in checks):
        raise typer.Exit(console.Exit.UNEXPECTED)
