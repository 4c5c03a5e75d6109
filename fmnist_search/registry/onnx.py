"""Registered models as ONNX files, which are written only if ONNX Runtime computes the same as the model."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.registry.evaluation import load_classifier
from fmnist_search.registry.packaging import LoadedModel
from fmnist_search.text import first_line

INPUT_NAME, OUTPUT_NAME = "pixels", "probabilities"
REQUIRED_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference of a probability. The two add the same float32 products in different orders."""

BATCH_SIZES = (1, 2, 7)

Images = npt.NDArray[np.float32]
Converter = Callable[[LoadedModel, Mapping[str, str]], bytes]
"""Returns a model as the content of an ONNX file with this metadata."""


def check_installed(packages: Sequence[str] = REQUIRED_PACKAGES) -> None:
    """Check that the libraries of the extra `onnx` are installed.

    Raises:
        UserError: if one of them is missing.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(f"export: needs {', '.join(missing)}; pip install 'fmnist-search[onnx]'")


def convert(model: LoadedModel, metadata: Mapping[str, str]) -> bytes:
    """Return the model as ONNX with this metadata, and without the source locations that torch adds to every node."""
    with _silence_exporter():
        batch = torch.export.Dim("images")
        example = (torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE),)
        try:
            program = torch.onnx.export(
                model.make_module(),
                example,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: batch},),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            detail = first_line(error)
            raise UserError(f"model {model.uri!r}: cannot be translated to ONNX ({detail[:200]})") from error
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        program.model.metadata_props.update(metadata)
        return bytes(program.model_proto.SerializeToString())


def export_onnx(
    uri: str,
    path: Path,
    read_images: Callable[[str], npt.ArrayLike],
    converter: Converter = convert,
    *,
    tracking_uri: str | None = None,
    trust: bool = False,
) -> float:
    """Write a model as ONNX: input `pixels` float32 (N, 28, 28) of 0..255, output `probabilities` float32 (N, classes).

    Before the file is written, ONNX Runtime computes images (N, 28, 28) of the model's dataset, which `read_images`
    returns by the name of the dataset, and as many random ones, in batches of 1, 2, 7 and N. No probability may differ
    by more than `TOLERANCE`. The metadata of the file holds dataset and classes. `converter` makes the content of the
    file. Return the largest difference.

    Raises:
        UserError: if there is no such model, it is not trusted, ONNX lacks one of its operators, ONNX Runtime computes
            something else, or the file cannot be written.
    """
    check_installed()
    model = load_classifier(uri, tracking_uri, trust=trust)
    images = np.asarray(read_images(model.dataset), np.float32)
    content = converter(model, {"dataset": model.dataset, "classes": json.dumps(model.classes)})
    difference = _largest_difference(content, model.probabilities, _check_batches(images))
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path}: was not written, because ONNX Runtime differs from the model by {difference:.2g} in a "
            f"probability, and at most {TOLERANCE:g} is allowed; try other versions of torch or onnxruntime"
        )
    _write_file(path, content)
    return difference


def _check_batches(images: Images) -> Iterator[Images]:
    """Yield the images and as many random ones, in batches of several sizes and all at once."""
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.float32)
    for source in (images, noise):
        start = 0
        for size in BATCH_SIZES:
            yield source[start : start + size]
            start += size
        yield source


def _largest_difference(content: bytes, model: Any, batches: Iterator[Images]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    differences = [np.abs(session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0] - model(batch)).max() for batch in batches]
    return float(np.max(differences))


def _write_file(path: Path, content: bytes) -> None:
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


@contextlib.contextmanager
def _silence_exporter(logger_names: Sequence[str] = ("onnxscript", "onnx_ir", "torch.onnx")) -> Iterator[None]:
    """Silence the log messages, warnings and output of the exporter."""
    before = {name: logging.getLogger(name).level for name in logger_names}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in logger_names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
