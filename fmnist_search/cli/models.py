"""From a search to a model: promote, predict, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fmnist_search.cli.app import AsJson, DataDir, StudyName, TrackingUri, Workdir, app, image_source
from fmnist_search.cli.search import close
from fmnist_search.errors import UserError


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
    from fmnist_search import study as studies
    from fmnist_search.config import StudyConfig
    from fmnist_search.console import TrainingDisplay, show_json

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
        test = read_test_set("fashion-mnist", image_source(data_dir))
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
        test = read_test_set("fashion-mnist", image_source(data_dir))
        accuracy = wilson(int((loaded.predict(test.pixels) == test.labels.numpy()).sum()), len(test))
        evaluations = registry.record_test(client, version, accuracy)
    if as_json:
        show_json({"model": address, **vars(accuracy), "accuracy": accuracy.value, "evaluations": evaluations})
        return
    out.print(
        f"{address}: {accuracy.value:.2%} of {accuracy.images:,} test images "
        f"(95 % interval {accuracy.low:.2%} to {accuracy.high:.2%}); tested {evaluations} time{'s' * (evaluations > 1)}"
    )


def _client(tracking_uri: str | None) -> Any:
    from fmnist_search.places import tracking_uri as resolve
    from fmnist_search.tracking import connect

    return connect(resolve(tracking_uri))


def _load(model: str | None, tracking_uri: str | None) -> Any:
    from fmnist_search import registry

    _client(tracking_uri)
    return registry.load_model(model or registry.DEFAULT_MODEL)
