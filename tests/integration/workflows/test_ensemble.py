"""An ensemble of runs of several studies and families: its evaluation, and its registration as a model."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from fmnist_search.config.toml_files import read_recipe
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import load_images, read_test_set
from fmnist_search.registry.champion_rule import CorrectnessRecord
from fmnist_search.registry.packaging import load_model
from fmnist_search.training.checkpoint import classifier_from_weights, state_from_bytes
from tests.integration.conftest import TINY_STUDY, CommandResult, FinishedStudy, read_artifact, run_command

RECIPE = """
epochs = 1
batch_size = 50
model.family = "mlp"
model.width = 16
data.train_images = 500
data.validation = 500
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
def study(tmp_path_factory: pytest.TempPathFactory) -> EnsembleStudy:
    folder = tmp_path_factory.mktemp("ensembles")
    (folder / "tiny.toml").write_text(TINY_STUDY)
    (folder / "recipe.toml").write_text(RECIPE)
    outcome = run_command(folder, "search", "tiny.toml", "--trials", 2, "--set", "finalists.recipes=0")
    assert outcome.exit_code == 0, outcome.stderr
    partial = EnsembleStudy(folder, outcome, ("", ""), ("", ""))
    run_ids = {row["number"]: row["run_id"] for row in partial.run("leaderboard", "tiny", "--json").json}
    return EnsembleStudy(
        folder, outcome, (run_ids[0], run_ids[1]), (partial.train(), partial.train("seed=1", "model.width=24"))
    )


def assert_single_error(outcome: CommandResult, *expected: str) -> None:
    assert outcome.exit_code == 2, outcome
    assert len(outcome.errors) == 1, outcome.stderr
    assert not outcome.stdout
    for text in expected:
        assert text in outcome.errors[0]


def expected_probabilities(study: EnsembleStudy, source: DataSource) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean probabilities of the two trainings on the validation images, and the true classes."""
    recipes = [read_recipe(study.folder / "recipe.toml", {"model.width": width}) for width in (16, 24)]
    validation = load_images(recipes[0].data, source).validation
    files = [study.weights_path(run_id) for run_id in study.training_run_ids]
    networks = [
        classifier_from_weights(r, state_from_bytes(f.read_bytes(), "w")) for r, f in zip(recipes, files, strict=True)
    ]
    with torch.inference_mode():
        probabilities = torch.stack([network(validation.pixels).softmax(1) for network in networks])
    return probabilities.mean(0).numpy(), validation.labels.numpy()


# ---------------------------------------------------------------------------------------- evaluation


def test_an_ensemble_is_evaluated_by_the_mean_of_its_members_probabilities(
    study: EnsembleStudy, source: DataSource
) -> None:
    outcome = study.run("ensemble", *study.training_run_ids, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    found = outcome.json
    mean, labels = expected_probabilities(study, source)
    assert found["accuracy"] == pytest.approx((mean.argmax(1) == labels).mean(), abs=0.001)
    assert found["loss"] == pytest.approx(-np.log(mean[np.arange(len(labels)), labels]).mean(), abs=1e-4)
    assert (found["validation_images"], found["registered"]) == (500, None)
    assert [member["run_id"] for member in found["members"]] == list(study.training_run_ids)


def test_trials_are_given_by_number_and_combined_with_other_families(study: EnsembleStudy) -> None:
    outcome = study.run("ensemble", 0, 1, study.training_run_ids[0])
    assert outcome.exit_code == 0, outcome.stderr
    found = study.run("ensemble", *study.trial_run_ids, study.training_run_ids[0], "--json").json
    for number, member in enumerate(found["members"][:2]):
        curve = study.run("show", number, "--study", "tiny", "--json").json["curve"]
        assert member["accuracy"] == pytest.approx(max(curve), abs=0.001), (
            "the stored weights are those of the best epoch"
        )
    head, *rows, verdict = outcome.stdout.splitlines()
    assert head.split() == ["run", "val_accuracy", "val_loss"]
    scores = [*found["members"], found]
    assert [row.split()[-2:] for row in rows] == [[f"{f['accuracy']:.2%}", f"{f['loss']:.4f}"] for f in scores]
    assert f"{found['accuracy']:.2%} on 500 validation images" in verdict
    assert "--register" in verdict


def test_without_register_an_ensemble_is_not_evaluated_on_test_images_nor_registered(study: EnsembleStudy) -> None:
    found = study.run("ensemble", *study.training_run_ids, "--json").json
    logged_run = study.client.get_run(found["run_id"])
    assert (logged_run.info.status, logged_run.data.tags["kind"]) == ("FINISHED", "ensemble")
    assert logged_run.data.tags["members"].split(", ") == list(study.training_run_ids)
    metrics = logged_run.data.metrics
    assert (metrics["val/accuracy"], metrics["val/loss"]) == (found["accuracy"], found["loss"])
    assert not [name for name in metrics if name.startswith("test/")]
    assert not study.client.search_model_versions(f"run_id = '{found['run_id']}'")
    table = json.loads(read_artifact(study.client, found["run_id"], "members.json"))
    assert [row[0] for row in table["data"]] == list(study.training_run_ids)


# ------------------------------------------------------------------------------------ registration


def test_a_registered_ensemble_is_one_model_and_a_second_one_is_compared_with_it_image_by_image(
    study: EnsembleStudy, source: DataSource
) -> None:
    outcome = study.run("ensemble", *study.training_run_ids, "--register", "--model-name", "team", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    found, registered = outcome.json, outcome.json["registered"]
    assert (registered["model"], registered["version"], registered["alias"]) == ("team", "1", "champion")
    again = study.run("evaluate", "models:/team@champion", "--again", "--json").json
    assert (again["hits"], again["evaluations"]) == (registered["test"]["hits"], 2)
    assert again["loss"] == pytest.approx(registered["test"]["loss"], abs=1e-4)
    mean, _ = expected_probabilities(study, source)
    recipe = read_recipe(study.folder / "recipe.toml")
    model = load_model("models:/team/1", study.tracking_uri)
    np.testing.assert_allclose(model.probabilities(load_images(recipe.data, source).validation.pixels), mean, atol=1e-5)

    version = study.client.get_model_version("team", "1")
    assert (version.run_id, version.tags["confirmed_seeds"]) == (found["run_id"], "1")
    assert float(version.tags["confirmed_mean"]) == found["accuracy"]
    assert version.tags["member_runs"].split(", ") == list(study.training_run_ids)
    for run_id in study.training_run_ids:
        assert f"`{run_id}`" in version.description
    assert "ensemble of runs that were given by their ids" in version.description
    hits = CorrectnessRecord.from_json(read_artifact(study.client, found["run_id"], "validation_hits.json"))
    assert hits.accuracies == (found["accuracy"],)
    metrics = study.client.get_run(found["run_id"]).data.metrics
    assert metrics["test/accuracy"] == registered["test"]["accuracy"]
    assert metrics["test/loss"] == pytest.approx(registered["test"]["loss"], abs=1e-4)

    table = json.loads(read_artifact(study.client, found["run_id"], "members.json"))
    tests = [member["test"] for member in found["members"]]
    assert [row[-2:] for row in table["data"]] == [[test["accuracy"], test["loss"]] for test in tests]
    assert {test["images"] for test in tests} == {10_000}

    outcome = study.run("ensemble", *study.training_run_ids, "--register", "--model-name", "team")
    assert outcome.exit_code == 0, outcome.stderr
    assert "team version 1 has the same weights and recipes; it is not registered again" in outcome.stderr
    assert "models:/team/1 (champion)" in outcome.stdout
    head, *rows, _ = outcome.stdout.splitlines()
    assert head.split() == ["run", "val_accuracy", "val_loss", "test_accuracy", "test_loss"]
    assert [row.split()[-2:] for row in rows[:2]] == [[f"{t['accuracy']:.2%}", f"{t['loss']:.4f}"] for t in tests]

    outcome = study.run("ensemble", *reversed(study.training_run_ids), "--register", "--model-name", "team")
    assert outcome.exit_code == 0, outcome.stderr
    assert "(challenger)" in outcome.stdout
    assert "team version 2 is challenger of version 1" in outcome.stderr
    challenger = study.client.get_model_version_by_alias("team", "challenger")
    assert (challenger.tags["compared_by"], challenger.tags["difference"]) == ("paired", "0.0")


@pytest.mark.slow
def test_an_ensemble_of_runs_that_held_no_images_back_is_only_tested(study: EnsembleStudy, source: DataSource) -> None:
    run_ids = [study.train("data.validation=0", f"seed={seed}") for seed in (0, 1)]
    assert_single_error(study.run("ensemble", *run_ids), "held no images back", "add --test for the test images")
    assert_single_error(study.run("ensemble", *run_ids, "--register"), "held no images back", "only test")
    outcome = study.run("ensemble", *run_ids, "--test", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    found = outcome.json
    assert (found["accuracy"], found["validation_images"], found["registered"]) == (None, 0, None)
    test = read_test_set("fashion-mnist", source)
    recipe, files = read_recipe(study.folder / "recipe.toml"), [study.weights_path(run_id) for run_id in run_ids]
    networks = [classifier_from_weights(recipe, state_from_bytes(file.read_bytes(), "w")) for file in files]
    with torch.inference_mode():
        probabilities = [network(test.pixels).softmax(1) for network in networks]
    right = [(each.argmax(1) == test.labels).sum().item() for each in [*probabilities, sum(probabilities)]]
    results = [member["test"] for member in found["members"]] + [found["test"]]
    assert [result["hits"] for result in results] == pytest.approx(right, abs=2)
    metrics = study.client.get_run(found["run_id"]).data.metrics
    assert (metrics["test/accuracy"], metrics["test/loss"]) == (found["test"]["accuracy"], found["test"]["loss"])
    assert not [name for name in metrics if name.startswith("val/")]
    table = json.loads(read_artifact(study.client, found["run_id"], "members.json"))
    assert table["columns"] == ["run", "name", "test_accuracy", "test_loss"]


@pytest.mark.slow
def test_an_ensemble_selected_on_validation_images_does_not_replace_a_champion_confirmed_on_fresh_seeds(
    study: EnsembleStudy,
) -> None:
    promoted = study.run("promote", "tiny", "--recipes", 1, "--seeds", 1, "--epochs", 1, "--model-name", "fair")
    assert promoted.exit_code == 0, promoted.stderr
    outcome = study.run("ensemble", *study.training_run_ids, "--register", "--model-name", "fair")
    assert "fair version 2 is challenger of version 1: its weights were selected on" in outcome.stderr
    assert int(study.client.get_model_version_by_alias("fair", "champion").version) == 1
    compared = study.run("evaluate", "models:/fair@champion", "models:/fair@challenger", "--json")
    assert compared.exit_code == 0, compared.stderr


@pytest.mark.slow
def test_a_study_that_starts_with_the_champion_takes_the_first_member_of_an_ensemble(study: EnsembleStudy) -> None:
    assert study.run("ensemble", *study.trial_run_ids, "--register").exit_code == 0
    options = ["--name", "started", "--start", "champion", "--trials", 1, "--set", "finalists.recipes=0"]
    outcome = study.run("search", "tiny.toml", *options)
    assert outcome.exit_code == 0, outcome.stderr
    first, started = (study.run("show", 0, "--study", name, "--json").json["recipe"] for name in ("tiny", "started"))
    assert {**first, "seed": 0} == {**started, "seed": 0}


def test_an_ensemble_whose_registered_model_was_deleted_is_garbage(study: EnsembleStudy) -> None:
    assert study.run("ensemble", *study.training_run_ids, "--register", "--model-name", "gone").exit_code == 0
    before = study.run("gc", "--json").json
    study.client.delete_registered_model("gone")
    with sqlite3.connect(study.folder / "mlflow.db") as database:
        database.execute("UPDATE logged_models SET creation_timestamp_ms = creation_timestamp_ms - 7200000")
    (models,) = [group for group in study.run("gc", "--json").json["groups"] if group["group"] == "models"]
    assert [item["of"] for item in models["items"]] == ["ensembles of runs"]
    assert "models" not in [group["group"] for group in before["groups"]]


# --------------------------------------------------------------------------------------- refusals


def test_runs_that_make_no_ensemble_give_one_line_and_leave_no_run(study: EnsembleStudy) -> None:
    one, other = study.training_run_ids
    shifted = study.train("data.seed=1", "data.validation=1000")
    without_validation = study.train("data.validation=0", "data.train_images=500")
    study_run_id = study.run("status", "tiny", "--json").json["run_id"]
    before = study.run_kinds()
    assert_single_error(study.run("ensemble", one), "two runs or more", "fmnist-search promote", "fmnist-search train")
    assert_single_error(study.run("ensemble", one, one), one, "twice")
    assert_single_error(
        study.run("ensemble", 0, study.trial_run_ids[0], "--study", "tiny"), study.trial_run_ids[0], "twice"
    )
    remedy = f"fmnist-search train --from-run {shifted} --set data.validation=500 --set data.seed=0"
    assert_single_error(study.run("ensemble", one, shifted), shifted, one, "data.seed is 1, there 0", remedy)
    assert_single_error(study.run("ensemble", without_validation, other), without_validation, "held no images back")
    assert_single_error(study.run("ensemble", other, without_validation, "--test"), "data.validation is 0, there 500")
    trial = study.trial_run_ids[0]
    assert_single_error(study.run("ensemble", one, trial, "--test"), trial, "a trial of a study", "with --register")
    assert_single_error(study.run("ensemble", one, study_run_id), study_run_id, "is the run of the study 'tiny'")
    assert_single_error(study.run("ensemble", one, "f" * 32), "f" * 32, "does not exist")
    assert_single_error(study.run("ensemble", 0, 99, "--study", "tiny"), "trial 99")
    assert_single_error(study.run("ensemble", one, other, "--model-name", "team"), "--register")
    named = study.run("ensemble", one, other, "--register", "--model-name", "a/b")
    assert_single_error(named, "finalists.model_name", "'a/b'", "not a valid name")
    assert study.run_kinds() == before


def test_the_error_for_missing_weights_names_the_command_that_trains_them_again(study: EnsembleStudy) -> None:
    path = study.folder / "fmnist-search" / "weights" / "tiny" / "001.pt"
    before = path.read_bytes()
    path.unlink()
    try:
        outcome = study.run("ensemble", 0, 1, "--study", "tiny")
        assert_single_error(
            outcome, study.trial_run_ids[1], "no weights", f"fmnist-search train --from-run {study.trial_run_ids[1]}"
        )
    finally:
        path.write_bytes(before)


def test_weights_of_another_network_give_one_line(study: EnsembleStudy) -> None:
    path = study.folder / "fmnist-search" / "weights" / "tiny" / "001.pt"
    before = path.read_bytes()
    other = study.weights_path(study.training_run_ids[0])
    path.write_bytes(other.read_bytes())
    try:
        outcome = study.run("ensemble", 0, 1, "--study", "tiny")
        assert_single_error(outcome, study.trial_run_ids[1], "weights of another network")
    finally:
        path.write_bytes(before)


def test_the_weights_of_an_archived_study_are_found_by_its_runs(study: EnsembleStudy) -> None:
    before = study.run("ensemble", *study.trial_run_ids, "--json").json
    options = ["--fresh", "--trials", 1, "--set", "finalists.recipes=0", "--set", "seed=5"]
    assert study.run("search", "tiny.toml", *options).exit_code == 0
    after = study.run("ensemble", *study.trial_run_ids, "--json").json
    assert after["members"] == before["members"]
