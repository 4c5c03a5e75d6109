"""Runs of several studies and families become one model: judged fairly, and registered as a promotion's would be."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from fmnist_search.config.toml_files import read_recipe
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import load_images
from fmnist_search.registry.champion_rule import CorrectnessRecord
from fmnist_search.registry.packaging import load_model
from fmnist_search.training.checkpoint import classifier_from_weights, state_from_bytes
from tests.integration.conftest import TINY_STUDY, CommandResult, FinishedStudy, run_command

RECIPE = """
epochs = 1
batch_size = 50
model.family = "mlp"
model.width = 16
data.train_images = 500
data.validation = 2000
"""


@dataclass(frozen=True)
class EnsembleStudy(FinishedStudy):
    """A folder with two trials of a small study and two trainings of another family, by their runs."""

    trial_run_ids: tuple[str, str]
    training_run_ids: tuple[str, str]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def weights_path(self, run_id: str) -> Path:
        """The artifact of a training."""
        return self.folder / "mlruns" / "fmnist-search" / run_id / "artifacts" / "weights.pt"

    def train(self, *changes: str) -> str:
        """The run of another training."""
        options = [part for change in changes for part in ("--set", change)]
        outcome = self.run("train", "recipe.toml", *options, "--json")
        assert outcome.exit_code == 0, outcome.stderr
        return str(outcome.json["run_id"])

    def run_kinds(self) -> list[str]:
        runs = self.client.search_runs(["1"])
        return sorted(run.data.tags["kind"] for run in runs)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> EnsembleStudy:
    folder = tmp_path_factory.mktemp("kept")
    (folder / "tiny.toml").write_text(TINY_STUDY)
    (folder / "recipe.toml").write_text(RECIPE)
    outcome = run_command(folder, "search", "tiny.toml", "--trials", 2, "--set", "finalists.recipes=0")
    assert outcome.exit_code == 0, outcome.stderr
    half = EnsembleStudy(folder, outcome, ("", ""), ("", ""))
    rows = {row["number"]: row["run_id"] for row in half.run("leaderboard", "tiny", "--json").json}
    return EnsembleStudy(folder, outcome, (rows[0], rows[1]), (half.train(), half.train("seed=1", "model.width=24")))


def assert_single_error(outcome: CommandResult, *expected: str) -> None:
    assert outcome.exit_code == 2, outcome
    assert len(outcome.errors) == 1, outcome.stderr
    assert not outcome.stdout
    for text in expected:
        assert text in outcome.errors[0]


def expected_probabilities(kept: EnsembleStudy, source: DataSource) -> tuple[np.ndarray, np.ndarray]:
    """Those of the two trainings, on average, on the validation images, and the true classes."""
    recipes = [read_recipe(kept.folder / "recipe.toml", {"model.width": width}) for width in (16, 24)]
    validation = load_images(recipes[0].data, source).validation
    files = [kept.weights_path(run_id) for run_id in kept.training_run_ids]
    networks = [
        classifier_from_weights(r, state_from_bytes(f.read_bytes(), "w")) for r, f in zip(recipes, files, strict=True)
    ]
    with torch.inference_mode():
        every = torch.stack([network(validation.pixels).softmax(1) for network in networks])
    return every.mean(0).numpy(), validation.labels.numpy()


# ---------------------------------------------------------------------------------------- judged


def test_an_ensemble_is_judged_by_the_mean_of_its_members_probabilities(
    kept: EnsembleStudy, source: DataSource
) -> None:
    outcome = kept.run("ensemble", *kept.training_run_ids, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    found = outcome.json
    mean, labels = expected_probabilities(kept, source)
    assert found["accuracy"] == pytest.approx((mean.argmax(1) == labels).mean(), abs=0.001)
    assert found["loss"] == pytest.approx(-np.log(mean[np.arange(len(labels)), labels]).mean(), abs=1e-4)
    assert (found["validation_images"], found["registered"]) == (2000, None)
    assert [member["run_id"] for member in found["members"]] == list(kept.training_run_ids)


def test_trials_are_named_by_number_and_stand_beside_other_families(kept: EnsembleStudy) -> None:
    outcome = kept.run("ensemble", 0, 1, kept.training_run_ids[0])
    assert outcome.exit_code == 0, outcome.stderr
    found = kept.run("ensemble", *kept.trial_run_ids, kept.training_run_ids[0], "--json").json
    for number, member in enumerate(found["members"][:2]):
        curve = kept.run("show", number, "--study", "tiny", "--json").json["curve"]
        assert member["accuracy"] == pytest.approx(max(curve), abs=0.001), "the kept weights are the best epoch's"
    head, *rows, verdict = outcome.stdout.splitlines()
    assert head.split() == ["run", "val_accuracy", "val_loss"]
    figures = [*found["members"], found]
    assert [row.split()[-2:] for row in rows] == [[f"{f['accuracy']:.2%}", f"{f['loss']:.4f}"] for f in figures]
    assert f"{found['accuracy']:.2%} on 2,000 validation images" in verdict
    assert "--register" in verdict


def test_without_being_asked_it_meets_no_test_image_and_is_not_registered(kept: EnsembleStudy) -> None:
    found = kept.run("ensemble", *kept.training_run_ids, "--json").json
    kept_run = kept.client.get_run(found["run_id"])
    assert (kept_run.info.status, kept_run.data.tags["kind"]) == ("FINISHED", "ensemble")
    assert kept_run.data.tags["members"].split(", ") == list(kept.training_run_ids)
    metrics = kept_run.data.metrics
    assert (metrics["val/accuracy"], metrics["val/loss"]) == (found["accuracy"], found["loss"])
    assert not [name for name in metrics if name.startswith("test/")]
    assert not kept.client.search_model_versions(f"run_id = '{found['run_id']}'")
    table = json.loads(mlflow.artifacts.load_text(f"runs:/{found['run_id']}/members.json"))
    assert [row[0] for row in table["data"]] == list(kept.training_run_ids)


# ------------------------------------------------------------------------------------ registered


def test_a_registered_ensemble_is_one_model_that_gives_what_its_members_give(
    kept: EnsembleStudy, source: DataSource
) -> None:
    outcome = kept.run("ensemble", *kept.training_run_ids, "--register", "--model-name", "team", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    found, told = outcome.json, outcome.json["registered"]
    assert (told["model"], told["version"], told["alias"]) == ("team", "1", "champion")
    again = kept.run("evaluate", "models:/team@champion", "--again", "--json").json
    assert (again["hits"], again["evaluations"]) == (told["test"]["hits"], 2)
    mean, _ = expected_probabilities(kept, source)
    recipe = read_recipe(kept.folder / "recipe.toml")
    model = load_model("models:/team/1", kept.tracking_uri)
    np.testing.assert_allclose(model.probabilities(load_images(recipe.data, source).validation.pixels), mean, atol=1e-5)

    version = kept.client.get_model_version("team", "1")
    assert (version.run_id, version.tags["confirmed_seeds"]) == (found["run_id"], "1")
    assert float(version.tags["confirmed_mean"]) == found["accuracy"]
    assert version.tags["member_runs"].split(", ") == list(kept.training_run_ids)
    for run_id in kept.training_run_ids:
        assert f"`{run_id}`" in version.description
    assert "ensemble of runs that were given by their ids" in version.description
    hits = CorrectnessRecord.from_json(mlflow.artifacts.load_text(f"runs:/{found['run_id']}/validation_hits.json"))
    assert hits.accuracies == (found["accuracy"],)
    metrics = kept.client.get_run(found["run_id"]).data.metrics
    assert metrics["test/accuracy"] == told["test"]["accuracy"]


def test_a_second_one_is_compared_image_by_image(kept: EnsembleStudy) -> None:
    for _ in range(2):
        outcome = kept.run("ensemble", *kept.training_run_ids, "--register", "--model-name", "twins")
        assert outcome.exit_code == 0, outcome.stderr
    assert "(challenger)" in outcome.stdout
    assert "twins version 2 is challenger of version 1" in outcome.stderr
    challenger = kept.client.get_model_version_by_alias("twins", "challenger")
    assert (challenger.tags["compared_by"], challenger.tags["difference"]) == ("paired", "0.0")


def test_one_that_is_flattered_takes_no_place_from_a_champion_that_is_not(kept: EnsembleStudy) -> None:
    promoted = kept.run("promote", "tiny", "--recipes", 1, "--seeds", 1, "--epochs", 1, "--model-name", "fair")
    assert promoted.exit_code == 0, promoted.stderr
    outcome = kept.run("ensemble", *kept.trial_run_ids, *kept.training_run_ids, "--register", "--model-name", "fair")
    assert "fair version 2 is challenger of version 1: its weights were selected on" in outcome.stderr
    assert int(kept.client.get_model_version_by_alias("fair", "champion").version) == 1
    compared = kept.run("evaluate", "models:/fair@champion", "models:/fair@challenger", "--json")
    assert compared.exit_code == 0, compared.stderr


def test_a_study_starts_with_the_first_member_where_an_ensemble_is_champion(kept: EnsembleStudy) -> None:
    assert kept.run("ensemble", *kept.trial_run_ids, "--register").exit_code == 0
    options = ["--name", "started", "--start", "champion", "--trials", 1, "--set", "finalists.recipes=0"]
    outcome = kept.run("search", "tiny.toml", *options)
    assert outcome.exit_code == 0, outcome.stderr
    first, started = (kept.run("show", 0, "--study", name, "--json").json["recipe"] for name in ("tiny", "started"))
    assert {**first, "seed": 0} == {**started, "seed": 0}


def test_an_ensemble_that_is_not_registered_any_more_is_left_over(kept: EnsembleStudy) -> None:
    assert kept.run("ensemble", *kept.training_run_ids, "--register", "--model-name", "gone").exit_code == 0
    before = kept.run("gc", "--json").json
    kept.client.delete_registered_model("gone")
    with sqlite3.connect(kept.folder / "mlflow.db") as database:
        database.execute("UPDATE logged_models SET creation_timestamp_ms = creation_timestamp_ms - 7200000")
    (models,) = [group for group in kept.run("gc", "--json").json["groups"] if group["group"] == "models"]
    assert [item["of"] for item in models["items"]] == ["ensembles of runs"]
    assert "models" not in [group["group"] for group in before["groups"]]


# --------------------------------------------------------------------------------------- refused


def test_what_makes_no_ensemble_is_one_line_and_leaves_no_run(kept: EnsembleStudy) -> None:
    one, other = kept.training_run_ids
    shifted = kept.train("data.seed=1", "data.validation=1000")
    whole = kept.train("data.validation=0")
    study = kept.run("status", "tiny", "--json").json["run_id"]
    before = kept.run_kinds()
    assert_single_error(kept.run("ensemble", one), "two runs or more", "fmnist-search promote", "fmnist-search train")
    assert_single_error(kept.run("ensemble", one, one), one, "twice")
    assert_single_error(
        kept.run("ensemble", 0, kept.trial_run_ids[0], "--study", "tiny"), kept.trial_run_ids[0], "twice"
    )
    remedy = f"fmnist-search train --from-run {shifted} --set data.validation=2000 --set data.seed=0"
    assert_single_error(kept.run("ensemble", one, shifted), shifted, one, "data.seed is 1, there 0", remedy)
    assert_single_error(kept.run("ensemble", whole, other), whole, "held no images back")
    assert_single_error(kept.run("ensemble", one, study), study, "is the run of the study 'tiny'")
    assert_single_error(kept.run("ensemble", one, "f" * 32), "f" * 32, "does not exist")
    assert_single_error(kept.run("ensemble", 0, 99, "--study", "tiny"), "trial 99")
    assert_single_error(kept.run("ensemble", one, other, "--model-name", "team"), "--register")
    named = kept.run("ensemble", one, other, "--register", "--model-name", "a/b")
    assert_single_error(named, "'a/b'", "not a valid name", "--model-name")
    assert kept.run_kinds() == before


def test_a_run_whose_weights_are_gone_says_how_to_get_them_back(kept: EnsembleStudy) -> None:
    path = kept.folder / "fmnist-search" / "weights" / "tiny" / "001.pt"
    before = path.read_bytes()
    path.unlink()
    try:
        outcome = kept.run("ensemble", 0, 1, "--study", "tiny")
        assert_single_error(
            outcome, kept.trial_run_ids[1], "no weights", f"fmnist-search train --from-run {kept.trial_run_ids[1]}"
        )
    finally:
        path.write_bytes(before)


def test_weights_of_another_network_are_one_line(kept: EnsembleStudy) -> None:
    path = kept.folder / "fmnist-search" / "weights" / "tiny" / "001.pt"
    before = path.read_bytes()
    other = kept.weights_path(kept.training_run_ids[0])
    path.write_bytes(other.read_bytes())
    try:
        outcome = kept.run("ensemble", 0, 1, "--study", "tiny")
        assert_single_error(outcome, kept.trial_run_ids[1], "weights of another network")
    finally:
        path.write_bytes(before)


def test_the_weights_of_a_study_that_was_put_aside_are_found_by_its_runs(kept: EnsembleStudy) -> None:
    before = kept.run("ensemble", *kept.trial_run_ids, "--json").json
    options = ["--fresh", "--trials", 1, "--set", "finalists.recipes=0", "--set", "seed=5"]
    assert kept.run("search", "tiny.toml", *options).exit_code == 0
    after = kept.run("ensemble", *kept.trial_run_ids, "--json").json
    assert after["members"] == before["members"]
