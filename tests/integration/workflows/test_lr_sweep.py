"""`sweep-lr`: networks at several learning rates, each a run, all in one figure."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.integration.conftest import RunCommand

SMALL_DATA_OPTIONS = ["--set", "data.train_images=1000", "--set", "data.validation=1000", "--epochs", 2, "--workers", 1]


def test_a_sweep_trains_every_rate_from_every_seed_and_draws_them(command: RunCommand, tmp_path: Path) -> None:
    outcome = command(
        "sweep-lr", "logistic", "mlp-256", "--factors", "1,8", "--seeds", 2, *SMALL_DATA_OPTIONS, "--json"
    )
    assert outcome.exit_code == 0, outcome.stderr
    rates = outcome.json["rates"]
    assert [(rate["network"], rate["learning_rate"]) for rate in rates] == [
        ("logistic", 0.001),
        ("logistic", 0.008),
        ("mlp-256", 0.001),
        ("mlp-256", 0.008),
    ]
    assert all(len(rate["val_accuracies"]) == 2 and min(rate["val_accuracies"]) > 0.3 for rate in rates)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent = outcome.json["run_id"]
    assert {"sweep.png", "sweep.json"} <= {artifact.path for artifact in client.list_artifacts(parent)}
    experiment = client.get_run(parent).info.experiment_id
    members = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    assert len(members) == 8
    assert {member.data.params["optimizer.learning_rate"] for member in members} == {"0.001", "0.008"}
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(10**6)) > 100


def test_a_rate_whose_training_fails_is_reported_and_the_others_complete(command: RunCommand, tmp_path: Path) -> None:
    settings = [*SMALL_DATA_OPTIONS, "--set", "optimizer.name=sgd", "--seeds", 1, "--output", "rates.png"]
    outcome = command("sweep-lr", "mlp-512", "--factors", "1,100000", *settings)
    assert outcome.exit_code == 0, outcome.stderr
    lines = {line.split()[1]: line.rstrip() for line in outcome.stdout.splitlines() if line.startswith("mlp-512")}
    assert lines["1x"].endswith("completed")
    assert lines["100000x"].endswith("failed")
    assert (tmp_path / "rates.png").exists()


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["lenett"], ["'lenett'", "did you mean 'lenet'?"]),
        (["logistic", "--factors", "1,two"], ["--factors 1,two", "1,2,4,8"]),
        (["logistic", "--factors", "1,1"], ["--factors 1,1"]),
        (["logistic", "--factors", "1,1000000"], ["--factors 1e+06", "at most 100"]),
        (["logistic", "--set", "data.validation=0"], ["data.validation", "logistic"]),
        (["logistic", "--output", "sweep.jpg"], ["sweep.jpg", ".png"]),
        (["logistic", "--output", "none/sweep.png"], ["none/sweep.png", "cannot be written"]),
    ],
)
def test_a_mistake_gives_one_line(command: RunCommand, tmp_path: Path, arguments: list[str], texts: list[str]) -> None:
    outcome = command("sweep-lr", *arguments)
    assert outcome.exit_code == 2, outcome
    assert len(outcome.errors) == len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert all(text in outcome.errors[0] for text in texts), outcome.stderr
    assert not (tmp_path / "mlflow.db").exists()
