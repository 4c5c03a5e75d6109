"""A real study from end to end: what MLflow and Optuna hold afterwards, and what the same command does again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from fmnist_search import run_study
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.config.toml_files import recipe_from_toml
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import load_images, read_test_set
from fmnist_search.models.classifier import build
from fmnist_search.recipe.datasets import DATASETS
from fmnist_search.registry.champion_rule import CorrectnessRecord, unpack_bits
from fmnist_search.results.study import StopReason
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.training.evaluation import evaluate
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workspace import Workspace
from tests.integration.conftest import FinishedStudy, clean_environment, read_artifact

EPOCH_METRICS = {
    "train/loss",
    "train/accuracy",
    "val/loss",
    "val/accuracy",
    "time/epoch_seconds",
    "optimizer/learning_rate",
}


@pytest.fixture(scope="module")
def client(finished: FinishedStudy) -> MlflowClient:
    return MlflowClient(finished.tracking_uri)


@pytest.fixture(scope="module")
def runs(client: MlflowClient) -> dict[str, list[Run]]:
    """All runs by kind, as the study left them: sorted by name, before other tests add to them."""
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment is not None
    found = sorted(client.search_runs([experiment.experiment_id]), key=lambda run: str(run.info.run_name))
    return {kind: [r for r in found if r.data.tags["kind"] == kind] for kind in ("study", "trial", "finalist")}


def artifact_paths(client: MlflowClient, run: Run) -> set[str]:
    return {item.path for item in client.list_artifacts(run.info.run_id)}


def test_the_last_line_names_the_result_the_model_and_the_next_commands(finished: FinishedStudy) -> None:
    last = finished.result.stdout.strip().splitlines()[-1]
    assert "best trial" in last
    assert "on the test images" in last
    assert "models:/fmnist-search/1 (champion)" in last
    assert "fmnist-search ui" in last
    assert "fmnist-search leaderboard" in last


def test_watch_names_the_model_of_a_study_that_has_ended(finished: FinishedStudy) -> None:
    _, last = finished.run("watch", "tiny").stdout.splitlines()
    assert last.startswith("tiny: is not running; its budget of trials is spent; best trial ")
    assert last.endswith("; registered as models:/fmnist-search/1 (champion)")


def test_without_a_terminal_each_trial_is_one_plain_line(finished: FinishedStudy) -> None:
    lines = [line for line in finished.result.stderr.splitlines() if line[:3].isdigit()]
    assert [line[:3] for line in lines] == ["000", "001", "002", "003"]
    assert "\x1b" not in finished.result.stderr


def test_the_study_is_one_run_with_its_trials_below(runs: dict[str, list[Run]]) -> None:
    (study,) = runs["study"]
    assert study.info.status == "FINISHED"
    assert study.data.tags["state"] == "finished"
    assert len(runs["trial"]) == 4
    for run in runs["trial"] + runs["finalist"]:
        assert run.data.tags["mlflow.parentRunId"] == study.info.run_id


def test_names_of_trials_have_the_number_first_and_then_the_network(runs: dict[str, list[Run]]) -> None:
    names = [run.info.run_name for run in runs["trial"]]
    assert [name.split()[0] for name in names] == ["000", "001", "002", "003"]
    assert all(name.split()[1] == "cnn" for name in names)
    assert all(run.data.params["model.widths"] in run.info.run_name for run in runs["trial"])


def test_every_trial_has_the_same_parameters_and_metrics(runs: dict[str, list[Run]]) -> None:
    first, *others = runs["trial"]
    assert {"model.depth", "model.width_2", "batch_size", "optimizer.learning_rate", "model.widths"} <= set(
        first.data.params
    )
    for run in others:
        assert run.data.params.keys() == first.data.params.keys()
        assert run.data.metrics.keys() == first.data.metrics.keys()
    shallow = [run for run in runs["trial"] if run.data.params["model.depth"] == "1"]
    assert all(run.data.params["model.width_2"] == "0" for run in shallow)


def test_constant_parameters_are_logged_to_the_run_of_the_study(runs: dict[str, list[Run]]) -> None:
    (study,) = runs["study"]
    assert study.data.params["data.train_images"] == "500"
    assert study.data.params["epochs"] == "2"
    assert study.data.params["schedule.name"] == "constant"
    assert not study.data.params.keys() & runs["trial"][0].data.params.keys()


def test_each_epoch_is_a_point_of_every_metric(client: MlflowClient, runs: dict[str, list[Run]]) -> None:
    for run in runs["trial"]:
        for key in EPOCH_METRICS:
            history = client.get_metric_history(run.info.run_id, key)
            assert [point.step for point in history] == [1, 2]
        assert len(client.get_metric_history(run.info.run_id, "best/val_accuracy")) == 1
        assert not any(key.startswith("test/") for key in run.data.metrics)


def test_optuna_and_mlflow_have_the_same_values(finished: FinishedStudy, client: MlflowClient) -> None:
    url = f"sqlite:///{finished.folder / 'fmnist-search' / 'optuna.db'}"
    study = optuna.load_study(study_name="tiny", storage=url)
    run_ids = {row["number"]: row["run_id"] for row in finished.run("leaderboard", "tiny", "--json").json}
    for trial in study.trials[:4]:
        run = client.get_run(run_ids[trial.number])  # Optuna has a key instead of an id if MLflow was slow
        assert run.data.tags["trial"] == str(trial.number)
        assert run.data.metrics["val/accuracy"] == trial.value
        points = client.get_metric_history(run.info.run_id, "val/accuracy")
        assert {point.step: point.value for point in points} == trial.intermediate_values
        recipe = recipe_from_toml(read_artifact(client, run.info.run_id, "recipe.toml"))
        assert recipe.to_flat_dict() == trial.user_attrs["recipe"]


def test_a_completed_trial_has_its_recipe_summary_and_confusion_matrix(
    client: MlflowClient, runs: dict[str, list[Run]]
) -> None:
    for run in runs["trial"]:
        expected = {"recipe.toml", "model_summary.txt", "confusion_matrix.json"}
        assert expected <= artifact_paths(client, run)
        matrix = json.loads(read_artifact(client, run.info.run_id, "confusion_matrix.json"))
        counts = matrix["rows_true_columns_predicted"]
        assert sum(map(sum, counts)) == 500
        hits = sum(row[label] for label, row in enumerate(counts))
        assert hits / 500 == run.data.metrics["val/accuracy"]
        parameters = f"{int(run.data.metrics['model/parameters']):,}"
        assert parameters in read_artifact(client, run.info.run_id, "model_summary.txt")


def test_the_run_of_the_study_has_its_file_command_environment_note_and_dataset(
    client: MlflowClient, runs: dict[str, list[Run]]
) -> None:
    (study,) = runs["study"]
    assert {"study.toml", "command.txt", "environment.json", "report.md"} <= artifact_paths(client, study)
    note = study.data.tags["mlflow.note.content"]
    assert "Does a search run from end to end?" in note
    assert "space.cnn.depth" in note
    assert "test accuracy" in note
    assert "search tiny.toml" in read_artifact(client, study.info.run_id, "command.txt")
    assert json.loads(read_artifact(client, study.info.run_id, "environment.json"))["versions"]["torch"]
    (used,) = study.inputs.dataset_inputs
    full = DATASETS["fashion-mnist"].digest
    assert used.dataset.digest == full[:32]
    assert study.data.tags["dataset_digest"] == full


def test_the_champion_has_its_test_result_and_the_number_of_confirming_seeds(client: MlflowClient) -> None:
    version = client.get_model_version_by_alias("fmnist-search", "champion")
    run = client.get_run(version.run_id)
    assert run.data.tags["kind"] == "finalist"
    assert int(version.tags["test_hits"]) / 10_000 == run.data.metrics["test/accuracy"]
    assert version.tags["confirmed_seeds"] == "2"
    assert run.data.metrics["test/accuracy_low"] < run.data.metrics["test/accuracy"]


def test_the_page_of_the_model_begins_with_what_it_is_and_its_accuracies(client: MlflowClient) -> None:
    assert "Classifiers of Fashion-MNIST" in client.get_registered_model("fmnist-search").description
    version = client.get_model_version_by_alias("fmnist-search", "champion")
    hits = int(version.tags["test_hits"])
    assert sorted(version.tags)[:2] == ["accuracy_confirmed", "accuracy_test"]
    assert version.tags["accuracy_test"].startswith(f"{hits / 10_000:.2%} of 10,000 images")
    assert version.tags["accuracy_confirmed"].startswith(f"{float(version.tags['confirmed_mean']):.2%} ± ")
    assert version.description.startswith(f"{version.tags['network']}: {hits / 10_000:.2%} on the test images")
    assert not [key for key, value in version.tags.items() if re.fullmatch("[A-Za-z0-9+/]{200,}=*", value)]
    packed = read_artifact(client, version.run_id, "test_hits.txt")
    assert unpack_bits(packed, 10_000).sum() == hits


PREDICT_WITHOUT_PACKAGE_SCRIPT = """
import gzip, sys
sys.modules["fmnist_search"] = None
import mlflow, numpy as np
pixels, labels = np.load("pixels.npy"), np.load("labels.npy")
model = mlflow.pyfunc.load_model("models:/fmnist-search@champion")
parts = [model.predict(pixels[at:at + 500].astype(np.float32)) for at in range(0, len(pixels), 500)]
probabilities = np.concatenate(parts)
assert np.allclose(probabilities.sum(1), 1, atol=1e-4)
assert np.allclose(model.predict(pixels[:1].astype(np.float32)), probabilities[:1], atol=1e-5)
print((probabilities.argmax(1) == labels).sum())
"""


def test_the_champion_gives_its_recorded_accuracy_without_our_package(
    finished: FinishedStudy, client: MlflowClient, source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = read_test_set("fashion-mnist", source)
    version = client.get_model_version_by_alias("fmnist-search", "champion")
    for module in [name for name in sys.modules if name.partition(".")[0] == "fmnist_search"]:
        monkeypatch.setitem(sys.modules, module, None)  # makes an import of it fail
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(finished.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/fmnist-search@champion")
    probabilities = model.predict(test.pixels.numpy().astype(np.float32))
    assert np.allclose(probabilities.sum(1), 1, atol=1e-4)
    assert (probabilities.argmax(1) == test.labels.numpy()).sum() == int(version.tags["test_hits"])
    # Where there is a GPU, MLflow would try to move the model there, and cannot.
    assert model.metadata.flavors["python_function"]["config"] == {"device": "cpu"}


@pytest.mark.slow
def test_the_champion_gives_its_recorded_accuracy_in_a_process_without_our_package(
    finished: FinishedStudy, client: MlflowClient, tmp_path: Path, source: DataSource
) -> None:
    test = read_test_set("fashion-mnist", source)
    np.save(tmp_path / "pixels.npy", test.pixels.numpy())
    np.save(tmp_path / "labels.npy", test.labels.numpy())
    done = subprocess.run(
        [sys.executable, "-c", PREDICT_WITHOUT_PACKAGE_SCRIPT],
        cwd=tmp_path,
        env=clean_environment(
            MLFLOW_TRACKING_URI=finished.tracking_uri, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false", PYTHONPATH=""
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version = client.get_model_version_by_alias("fmnist-search", "champion")
    assert int(done.stdout.split()[-1]) == int(version.tags["test_hits"])


def test_a_run_that_is_trained_again_gives_the_same_results(
    finished: FinishedStudy, runs: dict[str, list[Run]]
) -> None:
    trial = runs["trial"][0]
    again = finished.run("train", "--from-run", trial.info.run_id, "--json")
    assert again.exit_code == 0, again.stderr
    assert again.json["epochs"][-1]["val_accuracy"] == trial.data.metrics["val/accuracy"]
    assert again.json["epochs"][-1]["train_loss"] == trial.data.metrics["train/loss"]


def test_stored_weights_are_a_plain_state_dict_that_gives_the_logged_accuracy(
    finished: FinishedStudy, runs: dict[str, list[Run]], source: DataSource
) -> None:
    trial = runs["trial"][0]
    recipe = recipe_from_toml(read_artifact(MlflowClient(finished.tracking_uri), trial.info.run_id, "recipe.toml"))
    weights = torch.load(finished.folder / "fmnist-search" / "weights" / "tiny" / "000.pt", weights_only=True)
    classifier = build(recipe.model)
    classifier.load_state_dict(weights)
    reached = evaluate(classifier.eval(), load_images(recipe.data, source).validation).accuracy
    assert reached == trial.data.metrics["best/val_accuracy"]


def test_predict_names_what_is_on_a_picture(finished: FinishedStudy, tmp_path: Path, source: DataSource) -> None:
    test = read_test_set("fashion-mnist", source)
    picture = tmp_path / "boot.png"
    Image.fromarray(test.pixels[0].numpy()).save(picture)
    rows = finished.run("predict", picture, "--test-image", 0, "--json").json
    assert rows[0]["class"] == rows[1]["class"]
    assert rows[0]["probability"] == pytest.approx(rows[1]["probability"])
    assert rows[1]["true"] == "Ankle boot"


def test_predict_resizes_and_inverts_a_photograph_when_asked(finished: FinishedStudy, tmp_path: Path) -> None:
    picture = tmp_path / "photo.jpg"
    Image.new("RGB", (300, 200), "white").save(picture)
    refused = finished.run("predict", picture)
    assert refused.exit_code == 2
    assert "300 by 200" in refused.errors[0]
    assert "--resize" in refused.errors[0]
    assert finished.run("predict", picture, "--resize", "--invert").exit_code == 0


def test_evaluate_shows_the_stored_result_and_evaluates_again_only_when_asked(finished: FinishedStudy) -> None:
    stored = finished.run("evaluate", "--json").json
    again = finished.run("evaluate", "--again", "--json").json
    assert again["hits"] == stored["hits"]
    assert again["evaluations"] == stored["evaluations"] + 1
    assert finished.run("evaluate", "--json").json["evaluations"] == again["evaluations"]


def test_status_and_leaderboard_agree_with_the_search(finished: FinishedStudy) -> None:
    status = finished.run("status", "tiny", "--json").json
    assert status["completed"] + status["pruned"] == 4
    rows: list[dict[str, Any]] = finished.run("leaderboard", "--json").json
    values = [row["value"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert status["best"]["number"] == rows[0]["number"]
    table = finished.run("leaderboard").stdout
    assert f"{values[0]:.2%}" in table


def test_the_same_command_on_a_finished_study_reports_that_nothing_is_left_to_do(
    finished: FinishedStudy, client: MlflowClient, runs: dict[str, list[Run]]
) -> None:
    before = finished.run("status", "tiny", "--json").json
    outcome = finished.run("search", "tiny.toml")
    assert outcome.exit_code == 0
    assert "nothing left to do" in outcome.stderr
    assert finished.run("status", "tiny", "--json").json == before
    (study,) = runs["study"]
    for key in ("test/accuracy", "confirmed/val_accuracy"):
        assert len(client.get_metric_history(study.info.run_id, key)) == 1
    assert len(client.get_run(study.info.run_id).inputs.dataset_inputs) == 1


def test_a_study_continues_with_the_device_and_threads_that_it_began_with(finished: FinishedStudy) -> None:
    threads = json.loads((next(finished.folder.rglob("environment.json"))).read_text())["threads"]
    outcome = finished.run("search", "tiny.toml", "--threads", threads + 1)
    assert outcome.exit_code == 0
    assert f"continues as it began: on cpu with {threads} threads" in outcome.stderr


def test_more_trials_continue_the_study_without_repeating_a_suggestion(finished: FinishedStudy) -> None:
    outcome = finished.run("search", "tiny.toml", "--trials", "6")
    assert outcome.exit_code == 0, outcome.stderr
    assert "2 new trials" in outcome.stderr or "3 new trials" in outcome.stderr
    summary = finished.run("status", "tiny", "--json").json
    assert summary["completed"] + summary["pruned"] == 6
    url = f"sqlite:///{finished.folder / 'fmnist-search' / 'optuna.db'}"
    trials = optuna.load_study(study_name="tiny", storage=url).trials
    rates = [t.params["optimizer.learning_rate"] for t in trials]
    assert len(set(rates)) == len(rates)


def test_a_changed_domain_is_refused_and_nothing_changes(finished: FinishedStudy) -> None:
    before = finished.run("status", "tiny", "--json").json
    outcome = finished.run("search", "tiny.toml", "--set", "model.kernel_1=3", "--set", "budget.epochs=3")
    assert outcome.exit_code == 2
    assert len(outcome.errors) == 2
    assert any("space.cnn.kernel_1" in line and "--fresh" in line for line in outcome.errors)
    assert any("budget.epochs" in line for line in outcome.errors)
    assert finished.run("status", "tiny", "--json").json == before


def test_promote_registers_a_challenger_unless_it_beats_the_champion(
    finished: FinishedStudy, client: MlflowClient
) -> None:
    champion = client.get_model_version_by_alias("fmnist-search", "champion").version
    outcome = finished.run("promote", "tiny", "--seeds", "1")
    assert outcome.exit_code == 0, outcome.stderr
    assert "(challenger)" in outcome.stdout
    assert client.get_model_version_by_alias("fmnist-search", "champion").version == champion
    challenger = client.get_model_version_by_alias("fmnist-search", "challenger")
    assert challenger.version != champion
    # It was compared image by image, which tags, output and description report.
    assert (challenger.tags["compared_by"], challenger.tags["compared_with"]) == ("paired", str(champion))
    comparison = challenger.tags["comparison"]
    assert f"challenger of version {champion}" in comparison
    assert comparison in outcome.stderr
    assert comparison[1:] in challenger.description
    card = read_artifact(client, challenger.run_id, "model_card.md")
    for text in (card, challenger.description):
        assert f"models:/fmnist-search/{challenger.version}" in text
        assert "@champion" not in text
    assert comparison[1:] in card
    hits = CorrectnessRecord.from_json(read_artifact(client, challenger.run_id, "validation_hits.json"))
    assert hits.correct.shape == (1, 500)
    assert hits.accuracies[0] == pytest.approx(float(challenger.tags["confirmed_mean"]), abs=0.002)


def test_an_ensemble_is_one_model_that_gives_its_recorded_accuracy(
    finished: FinishedStudy, client: MlflowClient
) -> None:
    options = ["--recipes", 2, "--seeds", 1, "--epochs", 1, "--ensemble", 2, "--model-name", "team", "--json"]
    outcome = finished.run("promote", "tiny", *options)
    assert outcome.exit_code == 0, outcome.stderr
    promoted = outcome.json
    assert (promoted["members"], promoted["model"], promoted["alias"]) == (2, "team", "champion")
    version = client.get_model_version("team", "1")
    assert (version.tags["ensemble"], len(version.tags["members"].split("; "))) == ("2", 2)
    assert "averages the probabilities of 2 networks" in version.description
    assert version.tags["confirmed_seeds"] == "1"
    again = finished.run("evaluate", "models:/team@champion", "--again", "--json").json
    assert again["hits"] == promoted["test"]["hits"] == int(version.tags["test_hits"])
    files = artifact_paths(client, client.get_run(version.run_id))
    assert {"validation_hits.json", "model_card.md"} <= files


def test_fresh_archives_the_old_study_with_its_trials_and_weights(finished: FinishedStudy) -> None:
    url = f"sqlite:///{finished.folder / 'fmnist-search' / 'optuna.db'}"
    before = len(optuna.load_study(study_name="tiny", storage=url).trials)
    outcome = finished.run("search", "tiny.toml", "--fresh", "--trials", "1", "--set", "finalists.recipes=0")
    assert outcome.exit_code == 0, outcome.stderr
    names = optuna.get_all_study_names(url)
    (archived,) = [name for name in names if name.startswith("tiny until")]
    assert len(optuna.load_study(study_name=archived, storage=url).trials) == before
    assert len(optuna.load_study(study_name="tiny", storage=url).trials) == 1
    assert finished.run("status", archived, "--json").json["study"] == archived
    weights = finished.folder / "fmnist-search" / "weights"
    assert len(list((weights / archived).glob("*.pt"))) > 1
    assert [path.name for path in (weights / "tiny").iterdir()] == ["000.pt"]


def test_fresh_ends_what_a_killed_search_has_left_of_the_old_study(finished: FinishedStudy) -> None:
    url = f"sqlite:///{finished.folder / 'fmnist-search' / 'optuna.db'}"
    client = MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    old = optuna.load_study(study_name="tiny", storage=url)
    old.ask()
    run_id = old.user_attrs["mlflow_run_id"]
    client.update_run(run_id, status="RUNNING")
    outcome = finished.run("search", "tiny.toml", "--fresh", "--trials", "1", "--set", "finalists.recipes=0")
    assert outcome.exit_code == 0, outcome.stderr
    (archived,) = [name for name in optuna.get_all_study_names(url) if name.startswith("tiny until")][-1:]
    states = [trial.state for trial in optuna.load_study(study_name=archived, storage=url).trials]
    assert optuna.trial.TrialState.RUNNING not in states
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_stopper_may_prune_a_trial_or_interrupt_the_study(finished: FinishedStudy, tmp_path: Path) -> None:
    config = StudyConfig.load(finished.folder / "tiny.toml", {"finalists.recipes": 0})
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    seen: list[EpochReport] = []

    def prune_first_then_stop(report: EpochReport) -> Decision:
        seen.append(report)
        return Decision.PRUNE if len(seen) == 1 else Decision.INTERRUPT

    options: dict[str, Any] = {"workspace": Workspace.resolve(uri), "tracking": TrackingOptions(enabled=False)}
    stopped = run_study(config, stopper=prune_first_then_stop, **options)
    assert [trial.state for trial in stopped.trials] == [TrialState.PRUNED, TrialState.INTERRUPTED]
    assert stopped.stop_reason is StopReason.INTERRUPTED
    continued = run_study(config, **options)
    assert continued.stop_reason is StopReason.TRIALS
    assert continued.count(TrialState.COMPLETED) == 3
