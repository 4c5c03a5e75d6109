"""Registered models as files for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmnist_search.cli.app import (
    DataDirOption,
    ForceOption,
    JsonOption,
    TrackingUriOption,
    TrustOption,
    app,
    check_output_path,
    image_source,
)
from fmnist_search.errors import UserError
from fmnist_search.workspace import resolve_tracking_uri

EXPORT_CHECK_IMAGES = 100
"""Number of training images on which an exported file is compared with its model."""


@app.command()
def export(
    model: Annotated[
        str | None, typer.Argument(help="MLflow address of the model; by default the champion.", show_default=False)
    ] = None,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file to write.", show_default=False)] = None,
    force: ForceOption = False,
    trust: TrustOption = False,
    tracking_uri: TrackingUriOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a registered model as a file for other runtimes.

    The input is `pixels`, float32 (N, 28, 28) of 0..255, the output `probabilities` (N, classes). The file is written
    only if ONNX Runtime computes the same probabilities as the model.

    Examples:

      fmnist-search export --onnx champion.onnx

      fmnist-search export models:/fmnist-search/3 --onnx third.onnx --force
    """
    from fmnist_search.cli import output
    from fmnist_search.data.loading import read_training_set
    from fmnist_search.registry.onnx import TOLERANCE, check_installed, export_onnx
    from fmnist_search.registry.packaging import DEFAULT_MODEL
    from fmnist_search.tracking.connection import connect

    if onnx is None:
        raise UserError("export: give the file to write with --onnx FILE")
    check_output_path(onnx, force=force)
    check_installed()
    client = connect(resolve_tracking_uri(tracking_uri))
    address = model or DEFAULT_MODEL
    source = image_source(data_dir)
    difference = export_onnx(
        address,
        onnx,
        lambda dataset: read_training_set(dataset, source).pixels[:EXPORT_CHECK_IMAGES].numpy(),
        tracking_uri=client.tracking_uri,
        trust=trust,
    )
    if as_json:
        exported = {"model": address, "file": str(onnx), "bytes": onnx.stat().st_size}
        output.print_json({**exported, "largest_difference": difference, "tolerance": TOLERANCE})
        return
    output.stdout.print(
        f"{onnx}: {address}, {onnx.stat().st_size:,} bytes; ONNX Runtime gives the same probabilities within "
        f"{difference:.1g} on {EXPORT_CHECK_IMAGES} training images and {EXPORT_CHECK_IMAGES} random ones",
        markup=False,
    )
