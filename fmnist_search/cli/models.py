"""Registered models: promote, ensemble, evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.app import (
    BackendOption,
    DataDirOption,
    DeviceOption,
    JsonOption,
    StorageOption,
    StudyArgument,
    StudyOption,
    TrackingUriOption,
    TrustOption,
    WorkdirOption,
    app,
    image_source,
    make_workspace,
    plots_enabled,
    tracking_options,
)
from fmnist_search.cli.command import TrainingCommand, given_command
from fmnist_search.cli.search import print_summary
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.registry.evaluation import ModelComparison, TestScore
    from fmnist_search.workflows.ensemble import EnsembleResult


@app.command(cls=TrainingCommand)
def promote(
    context: typer.Context,
    study: StudyArgument = None,
    recipes: Annotated[int | None, typer.Option(help="Number of the best recipes to confirm.", min=1)] = None,
    trial: Annotated[
        int | None, typer.Option(help="Number of the trial to promote in place of the best.", min=0)
    ] = None,
    max_parameters: Annotated[
        int | None, typer.Option(help="Promote the best of the networks with at most so many parameters.", min=1)
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of new seeds for each recipe.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs of each training.", min=1)] = None,
    ensemble: Annotated[
        int | None, typer.Option(help="Number of finalists to average in one model.", min=0, show_default=False)
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="Name of the registered model; by default that of the study.", show_default=False)
    ] = None,
    backend: BackendOption = None,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Confirm a study's best recipes and register the best model.

    The recipes are trained again from new seeds, and the model of the best one is tested once on the test images. The
    alias `champion` moves only if the new model is better by more than the noise.

    Examples:

      fmnist-search promote quick

      fmnist-search promote quick --recipes 3 --seeds 3 --ensemble 3

      fmnist-search promote quick --max-parameters 50000 --model-name small
    """
    from fmnist_search.cli.model_serialization import champion_to_dict
    from fmnist_search.cli.output import print_json
    from fmnist_search.cli.progress import TrainingProgressDisplay
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.workflows.lookup import load_study
    from fmnist_search.workflows.study.api import promote as promote_study

    workspace = make_workspace(tracking_uri, workdir, data_dir, storage)
    config = load_study(workspace, study).config
    name = config.name
    given = {"recipes": recipes, "seeds": seeds, "epochs": epochs, "ensemble": ensemble, "model_name": model_name}
    changes = {key: value for key, value in given.items() if value is not None}
    if trial is not None and recipes is not None:
        raise UserError(f"--recipes {recipes}: --trial {trial} names the recipe; leave out one of the two")
    if not config.finalists.recipes and not recipes and trial is None:
        raise UserError(f"study {name!r}: has finalists.recipes = 0; give their number with --recipes")
    settings = StudyConfig.from_dict(
        {**config.model_dump(), "finalists": {**dict(config.finalists), **changes}}
    ).finalists
    summary = promote_study(
        name,
        settings=settings,
        trial=trial,
        max_parameters=max_parameters,
        backend=backend,
        workspace=workspace,
        tracking=tracking_options(context),
        callback=TrainingProgressDisplay(),
    )
    if as_json:
        print_json(champion_to_dict(summary.champion) if summary.champion else None)
    print_summary(summary, given_command(context), quiet=as_json, after_search=False)


@app.command(cls=TrainingCommand)
def ensemble(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(help="Ids of MLflow runs, or numbers of trials.", metavar="RUN...")],
    study: StudyOption = None,
    test: Annotated[
        bool,
        typer.Option("--test", help="Evaluate the ensemble and its members, all single trainings, on the test images."),
    ] = False,
    register: Annotated[
        bool, typer.Option("--register", help="Test the ensemble once and register it, as promote does.")
    ] = False,
    model_name: Annotated[
        str | None, typer.Option(help="Name of the registered model; by default that of `promote`.", show_default=False)
    ] = None,
    device: DeviceOption = None,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Average the probabilities of several trained runs, and evaluate the result on their validation images.

    The members may be of different families; all must have the same validation images, or none, which needs --test.
    Their weights are those that single trainings and completed trials store. The test images are used only with --test
    and --register.

    Examples:

      fmnist-search ensemble 3 17 21

      fmnist-search ensemble 4f1c... 9b20... --test

      fmnist-search ensemble 4f1c... 9b20... --register --model-name team
    """
    from fmnist_search.cli.progress import TrainingProgressDisplay
    from fmnist_search.training.devices import resolve_execution
    from fmnist_search.workflows import ensemble
    from fmnist_search.workflows.lookup import resolve_runs

    if model_name and not register:
        raise UserError("--model-name: is the name of a registered model; add --register")
    workspace = make_workspace(tracking_uri, workdir, data_dir, storage)
    result = ensemble.build_ensemble(
        resolve_runs(workspace, runs, study),
        workspace=workspace,
        callback=TrainingProgressDisplay(),
        device=resolve_execution(device or "auto").device,
        should_test=test,
        should_register=register,
        model_name=model_name,
        plots=plots_enabled(context),
    )
    _print_ensemble(result, as_json)


def _print_ensemble(result: EnsembleResult, as_json: bool) -> None:
    from fmnist_search.cli import output
    from fmnist_search.cli.model_serialization import ensemble_to_dict

    if as_json:
        output.print_json(ensemble_to_dict(result))
        return
    rows = [(member.run.name, member.run.run_id, member.evaluation, member.test) for member in result.members]
    rows.append(("ensemble", result.run_id, result.evaluation, result.test))
    body = [
        [name, run_id]
        + ([f"{each.accuracy:.2%}", f"{each.loss:.4f}"] if each else [])
        + ([f"{test.value:.2%}", f"{test.loss:.4f}"] if test else [])
        for name, run_id, each, test in rows
    ]
    columns = [
        *("", "run"),
        *(("val_accuracy", "val_loss") if result.evaluation else ()),
        *(("test_accuracy", "test_loss") if result.test else ()),
    ]
    output.print_table(output.make_table(columns, body))
    if registered := result.registered:
        output.stderr.print(f"{registered.model} {registered.verdict}", markup=False)
    output.stdout.print(f"ensemble of {len(result.members)}: {'; '.join(_ensemble_verdict(result))}", markup=False)


def _ensemble_verdict(result: EnsembleResult) -> Iterator[str]:
    """Yield what is said of an ensemble below its table."""
    from fmnist_search.cli import output

    if result.evaluation:
        best = max(member.evaluation.accuracy for member in result.members if member.evaluation)
        yield (
            f"{result.evaluation.accuracy:.2%} on {result.validation_images:,} validation images, "
            f"{100 * (result.evaluation.accuracy - best):+.2f} points over its best member"
        )
    if registered := result.registered:
        address = f"models:/{registered.model}/{registered.version} ({registered.alias})"
        yield f"{output.format_test(registered.test)}, registered as {address}"
    elif result.test:
        yield output.format_test(result.test)
    else:
        yield "add --register to test and register it"


@app.command()
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            help="MLflow address of the model, id of a training's run, or file of weights; by default the champion.",
            show_default=False,
        ),
    ] = None,
    other: Annotated[
        str | None, typer.Argument(help="MLflow address of a second model, to compare the two.", show_default=False)
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Test again although a result is stored, and record that.")
    ] = False,
    trust: TrustOption = False,
    tracking_uri: TrackingUriOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the accuracy of a model on the test images, or compare two registered models.

    The same weights are tested once: a stored result is shown, and --again tests anew. Two models are compared image
    by image; a model without stored results per image is tested for it, and its record says so.

    Examples:

      fmnist-search evaluate

      fmnist-search evaluate models:/fmnist-search@champion models:/fmnist-search@challenger

      fmnist-search evaluate out/weights.pt
    """
    from fmnist_search.cli import output
    from fmnist_search.cli.model_serialization import comparison_to_dict, test_score_to_dict
    from fmnist_search.data.loading import read_test_set
    from fmnist_search.registry import evaluation
    from fmnist_search.registry.packaging import DEFAULT_MODEL
    from fmnist_search.workflows import trained_models

    address = model or DEFAULT_MODEL
    if other is None:
        workspace = make_workspace(tracking_uri, data_dir=data_dir)
        score = trained_models.evaluate(address, workspace, again=again, trust=trust)
        if as_json:
            output.print_json(test_score_to_dict(score))
        else:
            output.stdout.print(_format_test_score(score), markup=False)
        return
    test = partial(read_test_set, source=image_source(data_dir))
    comparison = evaluation.compare_models(
        _connect_client(tracking_uri), address, other, test, again=again, trust=trust
    )
    if as_json:
        output.print_json(comparison_to_dict(comparison))
    else:
        _print_comparison(comparison)


def _format_test_score(score: TestScore) -> str:
    accuracy, evaluations = score.accuracy, score.evaluations
    loss = "" if accuracy.loss is None else f", loss {accuracy.loss:.4f}"
    return (
        f"{score.model}: {accuracy.value:.2%} of {accuracy.images:,} test images "
        f"(95 % interval {accuracy.low:.2%} to {accuracy.high:.2%}){loss}; "
        f"tested {evaluations} time{'s' * (evaluations > 1)}"
    )


def _print_comparison(comparison: ModelComparison) -> None:
    from fmnist_search.cli import output

    for score in (comparison.first, comparison.second):
        output.stdout.print(_format_test_score(score), markup=False)
    rows = [
        ["first right", f"{comparison.both:,}", f"{comparison.only_first:,}"],
        ["first wrong", f"{comparison.only_second:,}", f"{comparison.neither:,}"],
    ]
    output.print_table(output.make_table(["", "second right", "second wrong"], rows))
    verdict = f"{comparison.better.model} is better" if comparison.better else "there is no significant difference"
    output.stdout.print(f"{verdict}: McNemar's exact test gives p = {comparison.p_value:.2g}", markup=False)


def _connect_client(tracking_uri: str | None) -> Any:
    from fmnist_search.tracking.connection import connect
    from fmnist_search.workspace import resolve_tracking_uri as resolve

    return connect(resolve(tracking_uri))
