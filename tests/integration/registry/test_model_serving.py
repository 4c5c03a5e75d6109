"""The champion used without this package: served over HTTP, on MLflow's command line, and loaded both ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pytest
import torch

from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import read_test_set
from tests.integration.conftest import FinishedStudy, clean_environment
from tests.integration.servers import serving_model

pytestmark = pytest.mark.slow

CHAMPION_URI = "models:/fmnist-search@champion"
IMAGE_COUNT = 5


@pytest.fixture(scope="module")
def image_pixels(source: DataSource) -> npt.NDArray[np.float32]:
    """The first test images, (N, 28, 28)."""
    return read_test_set("fashion-mnist", source).pixels[:IMAGE_COUNT].numpy().astype(np.float32)


@pytest.fixture(scope="module")
def expected_probabilities(finished: FinishedStudy, image_pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The probabilities that pyfunc returns for them, with pickles refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        mlflow.set_tracking_uri(finished.tracking_uri)
        given: npt.NDArray[np.float32] = mlflow.pyfunc.load_model(CHAMPION_URI).predict(image_pixels)
    return given


@pytest.fixture(scope="module")
def invocations_url(finished: FinishedStudy) -> Iterator[str]:
    with serving_model(finished.folder, CHAMPION_URI) as invocations_url:
        yield invocations_url


def post(url: str, body: str) -> tuple[int, Any]:
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())


def test_pixels_as_json_give_probabilities(
    invocations_url: str, image_pixels: npt.NDArray[np.float32], expected_probabilities: npt.NDArray[np.float32]
) -> None:
    status, answer = post(invocations_url, json.dumps({"inputs": image_pixels.astype(int).tolist()}))
    assert status == 200
    assert np.array(answer["predictions"]) == pytest.approx(expected_probabilities, abs=1e-6)
    assert np.sum(answer["predictions"], axis=1) == pytest.approx([1] * IMAGE_COUNT, abs=1e-5)
    status, one = post(invocations_url, json.dumps({"instances": image_pixels[:1].tolist()}))
    assert status == 200
    assert np.array(one["predictions"]) == pytest.approx(expected_probabilities[:1], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (json.dumps({"inputs": np.zeros((28, 28)).tolist()}), "Shape of input (28, 28) does not match"),
        (json.dumps({"inputs": np.zeros((2, 1, 28, 28)).tolist()}), "Shape of input (2, 1, 28, 28) does not match"),
        (json.dumps({"inputs": [[[0, 1], [2, 3]]]}), "Shape of input (1, 2, 2) does not match"),
        (json.dumps({"inputs": [[["black"] * 28] * 28]}), "could not convert string to float: 'black'"),
        (json.dumps({"inputs": "ankle boot"}), "ankle boot"),
        (json.dumps({"inputs": []}), "Failed to enforce schema"),
        (json.dumps({}), "exactly one of the input fields"),
        ("ankle boot", "valid JSON"),
    ],
    ids=["one image", "channels", "small", "text", "a word", "none", "missing", "no JSON"],
)  # fmt: skip
def test_input_that_is_not_pixels_is_refused_with_the_reason(invocations_url: str, body: str, reason: str) -> None:
    status, answer = post(invocations_url, body)
    assert status == 400
    assert reason in answer["message"]


def test_the_command_line_of_mlflow_predicts(
    finished: FinishedStudy,
    tmp_path: Path,
    image_pixels: npt.NDArray[np.float32],
    expected_probabilities: npt.NDArray[np.float32],
) -> None:
    (tmp_path / "pixels.json").write_text(json.dumps({"inputs": image_pixels.tolist()}))
    command = ["-m", "mlflow", "models", "predict", "-m", CHAMPION_URI, "--env-manager", "local", "-t", "json"]
    bin_folder = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, *command, "-i", tmp_path / "pixels.json", "-o", tmp_path / "out.json"],
        env=clean_environment(PATH=bin_folder, MLFLOW_TRACKING_URI=finished.tracking_uri),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    given = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert np.array(given) == pytest.approx(expected_probabilities, abs=1e-6)


def test_pytorch_loads_the_same_model_without_unpickling(
    finished: FinishedStudy,
    monkeypatch: pytest.MonkeyPatch,
    image_pixels: npt.NDArray[np.float32],
    expected_probabilities: npt.NDArray[np.float32],
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(finished.tracking_uri)
    model = mlflow.pytorch.load_model(CHAMPION_URI)
    with torch.inference_mode():
        given = model(torch.from_numpy(image_pixels))
    assert given.numpy() == pytest.approx(expected_probabilities, abs=1e-6)
