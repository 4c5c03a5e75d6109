"""Registered models: predictions, comparisons, and export to ONNX."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path

import mlflow
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from PIL import Image
from scipy.stats import binomtest

from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import read_test_set, read_training_set
from fmnist_search.errors import UserError
from fmnist_search.registry import onnx
from fmnist_search.registry.packaging import LoadedModel, load_model
from tests.integration.conftest import CommandResult, FinishedStudy

FIRST_VERSION_URI, SECOND_VERSION_URI = "models:/fmnist-search/1", "models:/fmnist-search/2"


@pytest.fixture(scope="module")
def client(finished: FinishedStudy) -> MlflowClient:
    """Return a folder with a second registered version beside the champion."""
    outcome = finished.run("promote", "tiny", "--seeds", 1, "--epochs", 1)
    assert outcome.exit_code == 0, outcome.stderr
    mlflow.set_tracking_uri(finished.tracking_uri)
    return MlflowClient(finished.tracking_uri)


def assert_single_error(outcome: CommandResult, *expected: str) -> None:
    assert outcome.exit_code == 2, outcome
    assert len(outcome.errors) == 1, outcome.stderr
    assert not outcome.stdout
    for text in expected:
        assert text in outcome.errors[0]


# ------------------------------------------------------------------------------------------ predict


def test_predictions_of_an_image_file_an_idx_file_and_a_test_image_are_equal(
    finished: FinishedStudy, tmp_path: Path, source: DataSource
) -> None:
    pixels = read_test_set("fashion-mnist", source).pixels[:3].numpy()
    content = struct.pack(">4I", 0x0803, *pixels.shape) + pixels.tobytes()
    (tmp_path / "three.gz").write_bytes(gzip.compress(content))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("what I wear")
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "folder" / f"{number}.png")
    numbers = [part for number in range(3) for part in ("--test-image", number)]
    outcome = finished.run("predict", tmp_path / "three.gz", tmp_path / "folder", *numbers, "--top", 10, "--json")
    assert "skipped, not a PNG or JPEG: notes.txt" in outcome.stderr
    packed, drawn, tested = (outcome.json[at : at + 3] for at in (0, 3, 6))
    assert [row["image"] for row in drawn] == [str(tmp_path / "folder" / f"{n}.png") for n in range(3)]
    for one, other, test in zip(packed, drawn, tested, strict=True):
        assert one["top"] == other["top"] == test["top"]
        assert (test["true"] is not None, one["true"]) == (True, None)
        probabilities = [rank["probability"] for rank in one["top"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert (one["class"], one["probability"]) == (one["top"][0]["class"], one["top"][0]["probability"])


def test_predictions_of_a_large_idx_file_equal_the_stored_test_result(
    finished: FinishedStudy, source: DataSource
) -> None:
    path = source.cache / "fashion-mnist" / "t10k-images-idx3-ubyte"
    rows = finished.run("predict", path, "--model", FIRST_VERSION_URI, "--json").json
    mlflow.set_tracking_uri(finished.tracking_uri)
    test = read_test_set("fashion-mnist", source)
    expected = load_model(FIRST_VERSION_URI).probabilities(test.pixels).max(1)
    assert [row["probability"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-6)


def test_predict_shows_several_classes_and_draws_a_grid(finished: FinishedStudy, tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    outcome = finished.run("predict", "--test-image", 0, "--test-image", 1, "--top", 2, "--grid", path)
    head, *rows = outcome.stdout.splitlines()
    assert head.split() == ["image", "class", "probability", "then", "true", "class"]
    assert len(rows) == 2
    with Image.open(path) as drawn:
        assert drawn.format == "PNG"
    assert_single_error(finished.run("predict", "--test-image", 0, "--grid", tmp_path / "grid.jpg"), "grid.jpg", ".png")
    nowhere = tmp_path / "nowhere" / "grid.png"
    assert_single_error(
        finished.run("predict", "--test-image", 0, "--grid", nowhere), str(nowhere), "cannot be written"
    )


def test_predict_takes_a_range_of_test_images(finished: FinishedStudy, tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    outcome = finished.run("predict", "--test-image", 9999, "--test-images", "3:6", "--grid", path, "--json")
    assert [row["image"] for row in outcome.json] == [f"test image {n}" for n in (9999, 3, 4, 5)]
    assert all(row["true"] for row in outcome.json)
    assert path.exists()
    for given in ("3", "3:", ":3", "3:3", "-1:2", "a:b", "9990:10001"):
        assert_single_error(finished.run("predict", f"--test-images={given}"), f"--test-images {given}", "0:25")


@pytest.mark.slow
def test_a_grid_shows_the_first_hundred_images(finished: FinishedStudy, tmp_path: Path) -> None:
    (tmp_path / "many").write_bytes(struct.pack(">4I", 0x0803, 120, 28, 28) + bytes(120 * 784))
    outcome = finished.run("predict", tmp_path / "many", "--grid", tmp_path / "grid.png", "--json")
    assert len(outcome.json) == 120
    assert "shows the first 100 of 120" in outcome.stderr


def test_unreadable_images_are_one_error_line(finished: FinishedStudy, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_single_error(finished.run("predict", tmp_path / "empty"), str(tmp_path / "empty"), "has no image files")
    (tmp_path / "short").write_bytes(struct.pack(">4I", 0x0803, 3, 28, 28) + bytes(1000))
    assert_single_error(finished.run("predict", tmp_path / "short"), "short", "ends within image 1 of 3")


def test_control_characters_in_file_names_are_not_printed(finished: FinishedStudy, tmp_path: Path) -> None:
    name = "\x1b[2Jerror: no\n.png"
    Image.new("L", (28, 28)).save(tmp_path / name)
    (tmp_path / "\x1b[31m.txt").write_text("")
    outcome = finished.run("predict", tmp_path)
    assert "\\x1b[2Jerror: no\\n.png" in outcome.stdout
    assert "\\x1b[31m.txt" in outcome.stderr
    (tmp_path / name).write_text("")
    refused = finished.run("predict", tmp_path / name)
    assert_single_error(refused, "\\x1b[2Jerror: no\\n.png")
    assert "\x1b" not in outcome.stdout + outcome.stderr + refused.stderr


class _ForeignModel(torch.nn.Module):
    """A model with another input and three outputs."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)[:, :3]


@pytest.fixture(scope="module")
def foreign(finished: FinishedStudy, client: MlflowClient) -> str:
    """Register a model with another signature and return its address."""
    client.create_registered_model("foreign")
    experiment = client.create_experiment("foreign", str(finished.folder / "foreign"))
    run = client.create_run(experiment)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 32, 32))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 3))]),
    )
    with mlflow.start_run(run_id=run.info.run_id):
        info = mlflow.pytorch.log_model(
            _ForeignModel(),
            name="model",
            serialization_format="pt2",
            signature=signature,
            input_example=np.zeros((2, 32, 32), np.float32),
            pip_requirements=["torch"],
        )
    client.create_model_version("foreign", source=info.model_uri, run_id=run.info.run_id)
    return "models:/foreign/1"


def test_a_model_of_another_program_is_refused_and_with_trust_checked_for_its_signature(
    finished: FinishedStudy, foreign: str, tmp_path: Path
) -> None:
    commands = (
        ("predict", "--test-image", 0, "--model", foreign),
        ("evaluate", foreign),
        ("export", foreign, "--onnx", tmp_path / "model.onnx"),
    )
    for command in commands:
        assert_single_error(finished.run(*command), foreign, "was not registered by this program", "--trust")
        assert_single_error(
            finished.run(*command, "--trust"), foreign, "(-1, 32, 32)", "(-1, 3)", "(-1, 28, 28)", "(-1, 10)"
        )
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------- evaluate


def evaluation_counts(client: MlflowClient) -> list[int]:
    return [int(client.get_model_version("fmnist-search", n).tags["test_evaluations"]) for n in ("1", "2")]


@pytest.mark.parametrize("kind", ["trial", "finalist"])
def test_the_test_images_do_not_judge_the_runs_of_a_study(
    finished: FinishedStudy, client: MlflowClient, kind: str
) -> None:
    experiments = [each.experiment_id for each in client.search_experiments()]
    run = client.search_runs(experiments, f"tags.kind = '{kind}'", max_results=1)[0]
    assert_single_error(finished.run("evaluate", run.info.run_id), run.info.run_id, f"a {kind} of a study", "promote")
    assert "test_hits" not in client.get_run(run.info.run_id).data.tags


def test_two_models_are_compared_image_by_image_and_each_is_tested_once(
    finished: FinishedStudy, client: MlflowClient, source: DataSource
) -> None:
    before = evaluation_counts(client)
    found = finished.run("evaluate", FIRST_VERSION_URI, SECOND_VERSION_URI, "--json").json
    assert evaluation_counts(client) == before  # the test of the promotion is reused
    client.delete_model_version_tag(
        "fmnist-search", "1", "test_hits_sha256"
    )  # like a version that was registered by another program
    assert (
        finished.run("evaluate", FIRST_VERSION_URI, SECOND_VERSION_URI, "--json").json["models"][0]["evaluations"]
        == before[0] + 1
    )
    again = finished.run("evaluate", FIRST_VERSION_URI, SECOND_VERSION_URI, "--json").json
    assert {**again, "models": None} == {**found, "models": None}
    turned = finished.run("evaluate", SECOND_VERSION_URI, FIRST_VERSION_URI, "--json").json
    assert (turned["only_first"], turned["only_second"]) == (found["only_second"], found["only_first"])
    assert evaluation_counts(client) == [before[0] + 1, before[1]]

    mlflow.set_tracking_uri(finished.tracking_uri)
    test = read_test_set("fashion-mnist", source)
    mine, theirs = (
        load_model(uri).predict(test.pixels) == test.labels.numpy() for uri in (FIRST_VERSION_URI, SECOND_VERSION_URI)
    )
    only = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    assert (found["only_first"], found["only_second"]) == only
    assert (found["both"], found["neither"]) == (int((mine & theirs).sum()), int((~mine & ~theirs).sum()))
    assert found["p_value"] == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert [model["hits"] for model in found["models"]] == [int(mine.sum()), int(theirs.sum())]
    expected: str | None = (
        (FIRST_VERSION_URI if only[0] > only[1] else SECOND_VERSION_URI) if found["p_value"] <= 0.05 else None
    )
    assert found["better"] == expected


def test_a_comparison_as_text(finished: FinishedStudy, client: MlflowClient) -> None:
    found = finished.run("evaluate", FIRST_VERSION_URI, SECOND_VERSION_URI, "--json").json
    *_, table, first, second, verdict = finished.run(
        "evaluate", FIRST_VERSION_URI, SECOND_VERSION_URI
    ).stdout.splitlines()
    assert table.split() == ["second", "right", "second", "wrong"]
    assert first.split() == ["first", "right", f"{found['both']:,}", f"{found['only_first']:,}"]
    assert second.split() == ["first", "wrong", f"{found['only_second']:,}", f"{found['neither']:,}"]
    conclusion = f"{found['better']} is better" if found["better"] else "there is no significant difference"
    assert verdict == f"{conclusion}: McNemar's exact test gives p = {found['p_value']:.2g}"


def test_a_stored_result_that_contradicts_the_accuracy_is_not_used(
    finished: FinishedStudy, client: MlflowClient
) -> None:
    finished.run("evaluate", FIRST_VERSION_URI, SECOND_VERSION_URI)
    before = evaluation_counts(client)
    client.set_model_version_tag("fmnist-search", "1", "test_right", "AAAA")
    assert finished.run("evaluate", FIRST_VERSION_URI, SECOND_VERSION_URI).exit_code == 0
    assert evaluation_counts(client) == [before[0] + 1, before[1]]


def test_a_model_can_be_named_by_its_run(finished: FinishedStudy, client: MlflowClient) -> None:
    run_id = client.get_model_version("fmnist-search", "1").run_id
    by_run, by_version = (
        finished.run("evaluate", uri, "--json").json for uri in (f"runs:/{run_id}/model", FIRST_VERSION_URI)
    )
    assert by_run | {"model": ""} == by_version | {"model": ""}
    rows = [
        finished.run("predict", "--test-image", 0, "--model", uri, "--json").json
        for uri in (f"runs:/{run_id}/model", FIRST_VERSION_URI)
    ]
    assert rows[0] == rows[1]


def test_models_that_cannot_be_compared_are_one_error_line(finished: FinishedStudy, client: MlflowClient) -> None:
    same = finished.run("evaluate", FIRST_VERSION_URI, "models:/fmnist-search@champion")
    assert_single_error(same, "are both models:/fmnist-search/1")
    assert_single_error(
        finished.run("evaluate", FIRST_VERSION_URI, "models:/fmnist-search/99"), "models:/fmnist-search/99"
    )
    assert_single_error(finished.run("evaluate", "runs:/none/model"), "runs:/none/model", "no registered version")


# ------------------------------------------------------------------------------------------- export


def test_an_exported_model_replaces_a_file_only_with_force_and_computes_the_same_probabilities(
    finished: FinishedStudy, client: MlflowClient, source: DataSource, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("mine")
    assert_single_error(finished.run("export", FIRST_VERSION_URI, "--onnx", path), str(path), "--force")
    assert path.read_text() == "mine"
    outcome = finished.run("export", "--onnx", path, "--force", "--json")  # by default the champion
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.json["bytes"] == path.stat().st_size
    assert outcome.json["largest_difference"] <= outcome.json["tolerance"]
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("pixels", "tensor(float)", [28, 28])
    assert (given.name, given.type, given.shape[1:]) == ("probabilities", "tensor(float)", [10])
    mlflow.set_tracking_uri(finished.tracking_uri)
    model = load_model(FIRST_VERSION_URI)
    pixels = read_training_set("fashion-mnist", source).pixels[30_000:30_064].numpy().astype(np.float32)
    for count in (1, 2, 7, 64):
        (probabilities,) = session.run(None, {"pixels": pixels[:count]})
        np.testing.assert_allclose(probabilities, model.probabilities(pixels[:count]), atol=1e-5)
    # The file contains no path of this machine.
    assert b"fmnist_search" not in path.read_bytes()


def test_a_file_that_computes_other_probabilities_is_not_written(
    finished: FinishedStudy, client: MlflowClient, source: DataSource, tmp_path: Path
) -> None:
    def convert_other_version(model: LoadedModel, metadata: Mapping[str, str]) -> bytes:
        return onnx.convert(load_model(model.uri.replace("/1", "/2")), metadata)

    def read_images(dataset: str) -> npt.ArrayLike:
        return read_training_set(dataset, source).pixels[:64].numpy()

    mlflow.set_tracking_uri(finished.tracking_uri)
    with pytest.raises(UserError, match=r"model\.onnx: was not written.*differs from the model by"):
        onnx.export_onnx(FIRST_VERSION_URI, tmp_path / "model.onnx", read_images, convert_other_version)
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_error_names_what_to_install() -> None:
    with pytest.raises(UserError, match=r"^export: needs no_such, nor_this; pip install 'fmnist-search\[onnx\]'$"):
        onnx.check_installed(("onnx", "no_such", "nor_this"))


def test_invalid_exports_are_one_error_line(finished: FinishedStudy, tmp_path: Path) -> None:
    assert_single_error(finished.run("export"), "--onnx FILE")
    path = tmp_path / "model.onnx"
    assert_single_error(finished.run("export", "models:/nobody@champion", "--onnx", path), "models:/nobody@champion")
    assert_single_error(finished.run("export", "--onnx", tmp_path / "none" / "model.onnx"), "cannot be written")
