"""From a search to a model, and what the model is good for: promote, ensemble, evaluate, export."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.app import (
    AsJson,
    DataDir,
    Device,
    Force,
    OfStudy,
    StudyName,
    TrackingUri,
    Workdir,
    app,
    check_output,
    found_runs,
    image_source,
)
from fmnist_search.cli.search import close
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.registry.evaluation import Comparison, Judged
    from fmnist_search.results.study import Accuracy
    from fmnist_search.workflows.ensemble import Pooled

CHECKED = 100
"""Training images on which an exported file is compared with its model."""


@app.command()
def promote(
    study: StudyName = None,
    recipes: Annotated[int | None, typer.Option(help="How many of the best recipes.", min=1)] = None,
    seeds: Annotated[int | None, typer.Option(help="Fresh seeds for each.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.", min=1)] = None,
    ensemble: Annotated[
        int | None, typer.Option(help="Average so many of the finalists in one model.", min=0, show_default=False)
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="Registered model; by default the study's.", show_default=False)
    ] = None,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Confirm a study's best recipes and register the best model.

    They are trained again from fresh seeds, and the chosen one's model meets the test images once. The alias
    `champion` moves only where the new model is better by more than the noise.

    Examples:

      fmnist-search promote quick

      fmnist-search promote quick --recipes 3 --seeds 3 --ensemble 3
    """
    from fmnist_search.cli.output import TrainingDisplay, show_json
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.workflows.study import api as studies

    home = {"tracking_uri": tracking_uri, "workdir": workdir}
    name = study or studies.latest_study(**home)
    config = studies.config_of(name, **home)
    given = {"recipes": recipes, "seeds": seeds, "epochs": epochs, "ensemble": ensemble, "model_name": model_name}
    changes = {key: value for key, value in given.items() if value is not None}
    if not config.finalists.recipes and not recipes:
        raise UserError(f"study {name!r}: has finalists.recipes = 0; say how many with --recipes")
    settings = StudyConfig.from_dict(
        {**config.model_dump(), "finalists": {**dict(config.finalists), **changes}}
    ).finalists
    summary = studies.promote(name, settings=settings, **home, data_dir=data_dir, listener=TrainingDisplay())
    if as_json:
        show_json(summary.champion)
    close(summary, f"fmnist-search promote {name!r}", quiet=as_json, searched=False)


@app.command()
def ensemble(
    runs: Annotated[list[str], typer.Argument(help="Ids of runs in MLflow, or numbers of trials.", metavar="RUN...")],
    study: OfStudy = None,
    register: Annotated[
        bool, typer.Option("--register", help="Test it once and register it, as promote does.")
    ] = False,
    model_name: Annotated[
        str | None, typer.Option(help="Registered model; by default a promotion's.", show_default=False)
    ] = None,
    device: Device = None,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Average the probabilities of several trained runs, and say how good that is on their validation images.

    The members may be of different families; all have held the same images back for validation. Their weights are
    those that single trainings and completed trials keep. The test images are looked at where it is registered.

    Examples:

      fmnist-search ensemble 3 17 21

      fmnist-search ensemble 4f1c... 9b20... --register --model-name team
    """
    from fmnist_search.cli.output import TrainingDisplay
    from fmnist_search.training.autotune import resolve_execution
    from fmnist_search.workflows import ensemble

    if model_name and not register:
        raise UserError("--model-name: names what is registered; add --register")
    home, run_ids = found_runs(runs, study, tracking_uri, workdir)
    made = ensemble.ensemble(
        home,
        run_ids,
        image_source(data_dir),
        TrainingDisplay(),
        device=resolve_execution(device or "auto").device,
        registering=register,
        model_name=model_name,
    )
    _show_ensemble(made, as_json)


def _show_ensemble(made: Pooled, as_json: bool) -> None:
    from fmnist_search.cli import output

    whole, registered = made.evaluation, made.registered
    if as_json:
        members = [
            {"run_id": m.run.run_id, "name": m.run.name, "accuracy": m.evaluation.accuracy, "loss": m.evaluation.loss}
            for m in made.members
        ]
        figures = {"accuracy": whole.accuracy, "loss": whole.loss, "validation_images": made.images}
        version = {**vars(registered), "test": _plain_accuracy(registered.test)} if registered else None
        output.show_json({"run_id": made.run_id, **figures, "members": members, "registered": version})
        return
    rows = [(member.run.name, member.run.run_id, member.evaluation) for member in made.members]
    rows.append(("ensemble", made.run_id, whole))
    body = [[name, run_id, f"{each.accuracy:.2%}", f"{each.loss:.4f}"] for name, run_id, each in rows]
    output.show_table(output.table(["", "run", "val_accuracy", "val_loss"], body))
    gain = whole.accuracy - max(member.evaluation.accuracy for member in made.members)
    told = f"{whole.accuracy:.2%} on {made.images:,} validation images, {100 * gain:+.2f} points over its best member"
    if registered:
        output.talk.print(f"{registered.model} {registered.verdict}", markup=False)
        address = f"models:/{registered.model}/{registered.version} ({registered.alias})"
        told += f"; {registered.test.value:.2%} on the test images, registered as {address}"
    else:
        told += "; add --register to test and register it"
    output.out.print(f"ensemble of {len(made.members)}: {told}", markup=False)


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="MLflow address of a model; by default the champion.", show_default=False)
    ] = None,
    other: Annotated[
        str | None, typer.Argument(help="Another model, to say which of the two is better.", show_default=False)
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Look at the test images again, and record that.")] = False,
    tracking_uri: TrackingUri = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """A registered model's accuracy on the test images, or which of two is better.

    The same weights are tested once: a figure that is on record is shown, and --again takes it anew. Two models are
    compared image by image; one whose images are not on record is tested for it, and its record says so.

    Examples:

      fmnist-search evaluate

      fmnist-search evaluate models:/fmnist-search@champion models:/fmnist-search@challenger
    """
    from fmnist_search.cli import output
    from fmnist_search.data.loading import read_test_set
    from fmnist_search.registry import evaluation
    from fmnist_search.registry.packaging import DEFAULT_MODEL

    client = _client(tracking_uri)
    test = partial(read_test_set, source=image_source(data_dir))
    if other is None:
        judged = evaluation.judge(client, model or DEFAULT_MODEL, test, again=again)
        if as_json:
            output.show_json(_plain(judged))
        else:
            output.out.print(_said(judged), markup=False)
        return
    found = evaluation.compare(client, model or DEFAULT_MODEL, other, test, again=again)
    if as_json:
        counts = {name: getattr(found, name) for name in ("both", "only_first", "only_second", "neither", "p_value")}
        better = found.better.model if found.better else None
        output.show_json({"models": [_plain(found.first), _plain(found.second)], **counts, "better": better})
    else:
        _show_comparison(found)


def _plain(judged: Judged) -> dict[str, Any]:
    return {"model": judged.model, **_plain_accuracy(judged.accuracy), "evaluations": judged.evaluations}


def _plain_accuracy(accuracy: Accuracy) -> dict[str, Any]:
    return {**vars(accuracy), "accuracy": accuracy.value}


def _said(judged: Judged) -> str:
    accuracy, evaluations = judged.accuracy, judged.evaluations
    return (
        f"{judged.model}: {accuracy.value:.2%} of {accuracy.images:,} test images "
        f"(95 % interval {accuracy.low:.2%} to {accuracy.high:.2%}); tested {evaluations} time{'s' * (evaluations > 1)}"
    )


def _show_comparison(found: Comparison) -> None:
    from fmnist_search.cli import output

    for judged in (found.first, found.second):
        output.out.print(_said(judged), markup=False)
    rows = [
        ["first right", f"{found.both:,}", f"{found.only_first:,}"],
        ["first wrong", f"{found.only_second:,}", f"{found.neither:,}"],
    ]
    output.show_table(output.table(["", "second right", "second wrong"], rows))
    verdict = f"{found.better.model} is better" if found.better else "they cannot be told apart"
    output.out.print(f"{verdict}: McNemar's exact test gives p = {found.p_value:.2g}", markup=False)


@app.command()
def export(
    model: Annotated[
        str | None, typer.Argument(help="MLflow address of a model; by default the champion.", show_default=False)
    ] = None,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file to write.", show_default=False)] = None,
    force: Force = False,
    tracking_uri: TrackingUri = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write a registered model as a file for other runtimes.

    The file takes `pixels`, float32 (N, 28, 28) of 0..255, and gives `probabilities` (N, 10). It is checked with ONNX
    Runtime against the model, and written only where the two agree.

    Examples:

      fmnist-search export --onnx champion.onnx

      fmnist-search export models:/fmnist-search/3 --onnx third.onnx --force
    """
    from fmnist_search.cli import output
    from fmnist_search.data.loading import training_pool
    from fmnist_search.registry.onnx import TOLERANCE, check_installed, export_onnx
    from fmnist_search.registry.packaging import DEFAULT_MODEL

    if onnx is None:
        raise UserError("export: say where to, with --onnx FILE")
    check_output(onnx, force=force)
    check_installed()
    _client(tracking_uri)
    address = model or DEFAULT_MODEL
    source = image_source(data_dir)
    off = export_onnx(address, onnx, lambda dataset: training_pool(dataset, source).pixels[:CHECKED].numpy())
    if as_json:
        found = {"model": address, "file": str(onnx), "bytes": onnx.stat().st_size}
        output.show_json({**found, "largest_difference": off, "tolerance": TOLERANCE})
        return
    output.out.print(
        f"{onnx}: {address}, {onnx.stat().st_size:,} bytes; ONNX Runtime gives the same probabilities to {off:.1g} on "
        f"{CHECKED} training images and as many random ones",
        markup=False,
    )


def _client(tracking_uri: str | None) -> Any:
    from fmnist_search.tracking.store import connect
    from fmnist_search.workspace import tracking_uri as resolve

    return connect(resolve(tracking_uri))
