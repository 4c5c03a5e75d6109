"""Registered models whose files were edited in the artifact store: no code runs, and one line names the file."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from fmnist_search.errors import UserError
from fmnist_search.registry.packaging import load_model
from fmnist_search.registry.verification import file_digests
from fmnist_search.registry.versions import read_validation_score
from tests.golden.project import unpack
from tests.integration.conftest import CommandResult, FinishedStudy, run_command

MODEL_URI = "models:/fmnist-search/1"
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 28, 28)).astype(np.uint8)
EVIL_MODULE = """
from pathlib import Path
Path({canary!r}).write_text("ran")


class Model:
    def predict(self, images, params=None):
        import numpy
        return numpy.full((len(images), 10), 0.1, numpy.float32)


def _load_pyfunc(path, *settings):
    return Model()
"""


@pytest.fixture(scope="module")
def client(finished: FinishedStudy) -> MlflowClient:
    mlflow.set_tracking_uri(finished.tracking_uri)
    return MlflowClient(finished.tracking_uri)


@pytest.fixture(scope="module")
def model_folder(finished: FinishedStudy, client: MlflowClient) -> Path:
    """The folder with the files of the champion in the artifact store."""
    source = client.get_model_version_download_uri("fmnist-search", "1")
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=source))


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The same folder for a test that edits it; afterwards its files are what they were."""
    shutil.copytree(model_folder, tmp_path / "before")
    yield model_folder
    shutil.rmtree(model_folder)
    shutil.move(tmp_path / "before", model_folder)


@pytest.fixture
def without_digests(client: MlflowClient) -> Iterator[None]:
    """Let the version be one that an earlier version of this program registered."""
    before = client.get_model_version("fmnist-search", "1").tags["sha256"]
    client.delete_model_version_tag("fmnist-search", "1", "sha256")
    yield
    client.set_model_version_tag("fmnist-search", "1", "sha256", before)


def name_code(folder: Path, canary: Path) -> None:
    """Let MLmodel name a loader in a folder of code, which writes the canary when it is imported."""
    module = f"loader_of_{canary.parent.name}"  # a module is imported once in a process
    (folder / "code").mkdir()
    (folder / "code" / f"{module}.py").write_text(EVIL_MODULE.format(canary=str(canary)))
    description = yaml.safe_load((folder / "MLmodel").read_text())
    description["flavors"]["python_function"] |= {"loader_module": module, "code": "code"}
    (folder / "MLmodel").write_text(yaml.safe_dump(description))


def name_model_code(folder: Path, canary: Path) -> None:
    """Let MLmodel name a script as the code of a pyfunc model."""
    (folder / "model.py").write_text(EVIL_MODULE.format(canary=str(canary)))
    description = yaml.safe_load((folder / "MLmodel").read_text())
    description["flavors"] = {
        "python_function": {"loader_module": "mlflow.pyfunc.model", "model_code_path": "model.py", "config": None}
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(description))


def edit_graph(folder: Path, canary: Path) -> None:
    """Put an expression that writes the canary into the graph: torch evaluates those of dynamic sizes on load."""
    code = f"__import__('pathlib').Path({str(canary)!r}).write_text('ran')"

    def edit(content: str) -> str:
        return re.sub(r'"expr_str": "[^"]*"', lambda _: f'"expr_str": {json.dumps(code)}', content)

    rewrite_archive(folder / "data" / "model.pt2", "models/model.json", edit)


def rewrite_archive(path: Path, name: str, edit: Callable[[str], str]) -> None:
    """Edit one record of a pt2 file."""
    with zipfile.ZipFile(path) as archive:
        contents = {entry: archive.read(entry) for entry in archive.namelist()}
    (record,) = [entry for entry in contents if entry.endswith(name)]
    contents[record] = edit(contents[record].decode()).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in contents.items():
            archive.writestr(entry, content)


def edit_weights(folder: Path, canary: Path) -> None:
    """Let the weights be pickled."""
    edit = lambda content: content.replace('"use_pickle": false', '"use_pickle": true')  # noqa: E731
    rewrite_archive(folder / "data" / "model.pt2", "model_weights_config.json", edit)


def add_file(folder: Path, canary: Path) -> None:
    (folder / "data" / "model.pth").write_bytes(b"")


def remove_file(folder: Path, canary: Path) -> None:
    (folder / "data" / "model.pt2").unlink()


def commands(folder: Path) -> list[tuple[object, ...]]:
    return [
        ("predict", "--test-image", 0, "--model", MODEL_URI),
        ("evaluate", MODEL_URI, "--again"),
        ("export", MODEL_URI, "--onnx", folder / "model.onnx"),
    ]


def assert_refused(outcome: CommandResult, file: str) -> None:
    assert outcome.exit_code == 2, outcome
    assert len(outcome.errors) == 1, outcome.stderr
    assert MODEL_URI in outcome.errors[0]
    assert file in outcome.errors[0]
    assert "--trust" in outcome.errors[0]


EDITS = {
    name_code: "MLmodel is not the file that was registered",
    name_model_code: "MLmodel is not the file that was registered",
    edit_graph: "data/model.pt2 is not the file that was registered",
    edit_weights: "data/model.pt2 is not the file that was registered",
    add_file: "data/model.pth was added",
    remove_file: "data/model.pt2 is missing",
}


def test_a_version_keeps_the_digest_of_each_file(client: MlflowClient, model_folder: Path) -> None:
    stored = client.get_model_version("fmnist-search", "1").tags["sha256"]
    assert json.loads(stored) == file_digests(model_folder)
    assert len(stored) < 5_000  # PostgreSQL and MySQL keep it whole


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_model_is_refused_and_nothing_in_it_runs(
    edit: Callable[[Path, Path], None], finished: FinishedStudy, folder: Path, tmp_path: Path
) -> None:
    edit(folder, tmp_path / "canary")
    for command in commands(tmp_path):
        assert_refused(finished.run(*command), EDITS[edit])
    with pytest.raises(UserError, match="--trust"):
        load_model(MODEL_URI, finished.tracking_uri)
    assert {path.name for path in tmp_path.iterdir()} == {"before"}


@pytest.mark.parametrize("edit", [name_code, edit_graph])
def test_with_trust_the_code_of_a_model_runs(
    edit: Callable[[Path, Path], None], finished: FinishedStudy, folder: Path, tmp_path: Path
) -> None:
    edit(folder, tmp_path / "canary")
    finished.run("predict", "--test-image", 0, "--model", MODEL_URI, "--trust", "--json")
    assert (tmp_path / "canary").read_text() == "ran"


# ----------------------------------------------------------------------- versions without digests


def test_a_version_without_digests_is_rebuilt_from_its_weights(
    finished: FinishedStudy, client: MlflowClient, folder: Path, without_digests: None, tmp_path: Path
) -> None:
    edit_graph(folder, tmp_path / "canary")  # the graph is not read
    rebuilt = load_model(MODEL_URI, finished.tracking_uri).probabilities(PIXELS)
    assert not (tmp_path / "canary").exists()
    shutil.copy(tmp_path / "before" / "data" / "model.pt2", folder / "data" / "model.pt2")
    loaded = load_model(MODEL_URI, finished.tracking_uri, trust=True).probabilities(PIXELS)
    np.testing.assert_allclose(rebuilt, loaded, atol=1e-6)
    assert finished.run("export", MODEL_URI, "--onnx", tmp_path / "model.onnx").exit_code == 0


@pytest.mark.parametrize(
    ("edit", "file"),
    [
        (name_code, "code/loader_of_"),
        (name_model_code, "model.py"),
        (edit_weights, "data/model.pt2"),
        (add_file, "data/model.pth"),
        (remove_file, "data/model.pt2"),
    ],
)
def test_an_edited_version_without_digests_is_refused(
    edit: Callable[[Path, Path], None],
    file: str,
    finished: FinishedStudy,
    folder: Path,
    without_digests: None,
    tmp_path: Path,
) -> None:
    edit(folder, tmp_path / "canary")
    assert_refused(finished.run("predict", "--test-image", 0, "--model", MODEL_URI), file)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("settings", [{"loader_module": "os"}, {"code": "data"}, {"model_code_path": "MLmodel"}])
def test_a_version_without_digests_whose_description_names_code_is_refused(
    settings: dict[str, str], finished: FinishedStudy, folder: Path, without_digests: None
) -> None:
    description = yaml.safe_load((folder / "MLmodel").read_text())
    description["flavors"]["python_function"] |= settings
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    assert_refused(finished.run("predict", "--test-image", 0, "--model", MODEL_URI), "MLmodel names")


def test_a_version_without_digests_that_has_another_flavor_is_refused(
    finished: FinishedStudy, folder: Path, without_digests: None
) -> None:
    description = yaml.safe_load((folder / "MLmodel").read_text())
    description["flavors"]["sklearn"] = {"pickled_model": "model.pkl"}
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    assert_refused(finished.run("predict", "--test-image", 0, "--model", MODEL_URI), "has the flavor 'sklearn'")


@pytest.mark.parametrize("value", ["no JSON", "[]", '{"MLmodel": 3}'])
def test_a_version_whose_digests_are_damaged_is_refused(
    finished: FinishedStudy, client: MlflowClient, without_digests: None, value: str
) -> None:
    client.set_model_version_tag("fmnist-search", "1", "sha256", value)
    outcome = finished.run("predict", "--test-image", 0, "--model", MODEL_URI)
    assert_refused(outcome, "its tag with the digests of its files is damaged")


def test_an_ensemble_without_digests_and_without_the_runs_of_its_members_is_refused(
    finished: FinishedStudy, client: MlflowClient, without_digests: None
) -> None:
    client.set_model_version_tag("fmnist-search", "1", "ensemble", "3")
    try:
        outcome = finished.run("predict", "--test-image", 0, "--model", MODEL_URI)
    finally:
        client.delete_model_version_tag("fmnist-search", "1", "ensemble")
    assert_refused(outcome, "registered this ensemble without digests")


def test_the_champion_and_the_ensemble_of_an_old_folder_are_rebuilt(tmp_path: Path) -> None:
    old = unpack(tmp_path / "old") / "project"
    uri = f"sqlite:///{old / 'mlflow.db'}"
    for version in ("models:/fmnist-search/1", "models:/fmnist-search/2"):
        outcome = run_command(old, "predict", "--test-image", 0, "--model", version, "--json")
        assert outcome.exit_code == 0, outcome.stderr
        np.testing.assert_allclose(
            load_model(version, uri).probabilities(PIXELS),
            load_model(version, uri, trust=True).probabilities(PIXELS),
            atol=1e-6,
        )


# ------------------------------------------------------------------------------- artifacts of runs


@pytest.fixture
def run_folder(finished: FinishedStudy, client: MlflowClient, tmp_path: Path) -> Iterator[Path]:
    """The artifacts of the run that the champion comes from, for a test that edits them."""
    run_id = client.get_model_version("fmnist-search", "1").run_id
    folder = finished.folder / "mlruns" / "fmnist-search" / str(run_id) / "artifacts"
    shutil.copytree(folder, tmp_path / "before")
    yield folder
    shutil.rmtree(folder)
    shutil.move(tmp_path / "before", folder)


def test_an_edited_recipe_is_refused(finished: FinishedStudy, run_folder: Path) -> None:
    run_id = run_folder.parent.name
    assert finished.run("train", "--from-run", run_id, "--dry-run").exit_code == 0
    (run_folder / "recipe.toml").write_text(
        (run_folder / "recipe.toml").read_text().replace("epochs = 2", "epochs = 3")
    )
    outcome = finished.run("train", "--from-run", run_id, "--dry-run")
    assert outcome.exit_code == 2
    assert f"run {run_id!r}: recipe.toml is not the artifact that was logged" in outcome.errors[0]


def test_an_edited_record_of_validation_images_is_not_compared(client: MlflowClient, run_folder: Path) -> None:
    version = client.get_model_version("fmnist-search", "1")
    score = read_validation_score(client, version)
    assert score is not None
    assert score.correctness is not None
    record = json.loads((run_folder / "validation_hits.json").read_text())
    record["right"] = record["right"][::-1]
    (run_folder / "validation_hits.json").write_text(json.dumps(record))
    assert read_validation_score(client, version) == dataclasses.replace(score, correctness=None)
