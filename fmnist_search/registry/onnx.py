"""A registered model as an ONNX file that any runtime reads, written only where it computes what the model computes."""

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

import mlflow.pytorch
import numpy as np
import numpy.typing as npt
import torch

from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.registry.evaluation import load_classifier
from fmnist_search.text import first_line

INPUT_NAME, OUTPUT_NAME = "pixels", "probabilities"
REQUIRED_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference of a probability: the two add up the same float32 products in another order."""

BATCH_SIZES = (1, 2, 7)

Images = npt.NDArray[np.float32]


def check_installed() -> None:
    """Refuse to go on without the libraries of the extra `onnx`.

    Raises:
        UserError: one of them is not there.
    """
    if missing := [name for name in REQUIRED_PACKAGES if find_spec(name) is None]:
        raise UserError(f"export: needs {', '.join(missing)}; pip install 'fmnist-search[onnx]'")


def export_onnx(uri: str, path: Path, read_images: Callable[[str], npt.ArrayLike]) -> float:
    """Write a model as ONNX: `pixels` float32 (N, 28, 28) of 0..255 in, `probabilities` float32 (N, classes) out.

    ONNX Runtime then computes images (N, 28, 28) of the model's dataset, which `read_images` gives by its name, and
    random ones, in batches of 1, 2 and 7; the file is put in its place only where no probability is off by more than
    `TOLERANCE`. The file's metadata names dataset and classes. Gives the largest difference.

    Raises:
        UserError: no such model, an operator that ONNX lacks, a file that cannot be written or that does not agree.
    """
    check_installed()
    model = load_classifier(uri)
    images = np.asarray(read_images(model.dataset), np.float32)
    content = _convert(uri, {"dataset": model.dataset, "classes": json.dumps(model.classes)})
    off = _largest_difference(content, model.probabilities, _check_batches(images))
    if not off <= TOLERANCE:
        raise UserError(
            f"{path}: is not written, for ONNX Runtime differs from the model by {off:.2g} in a probability, and "
            f"{TOLERANCE:g} is allowed; other versions of torch or onnxruntime may agree"
        )
    _write_file(path, content)
    return off


def _convert(uri: str, metadata: Mapping[str, str]) -> bytes:
    """The graph, translated, with this metadata; without the traces of our source that torch leaves at every node."""
    with _silence_exporter():
        exported = mlflow.pytorch.load_model(uri)
        batch = torch.export.Dim("images")
        example = (torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE),)
        try:
            program = torch.onnx.export(
                exported,
                example,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: batch},),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            detail = first_line(error)
            raise UserError(f"model {uri!r}: cannot be translated to ONNX ({detail[:200]})") from error
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        program.model.metadata_props.update(metadata)
        return bytes(program.model_proto.SerializeToString())


def _check_batches(images: Images) -> Iterator[Images]:
    """Some of these images and as many random ones, in batches of several sizes."""
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.float32)
    for source in (images, noise):
        at = 0
        for size in BATCH_SIZES:
            yield source[at : at + size]
            at += size
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
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another place") from None


@contextlib.contextmanager
def _silence_exporter(logger_names: Sequence[str] = ("onnxscript", "onnx_ir", "torch.onnx")) -> Iterator[None]:
    """Keep the exporter's talk, which is about itself, from the user's terminal."""
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
