"""A typical search script: Optuna, MLflow, a DataLoader and a training loop, one trial at a time.

`python -m benchmarks.usual STUDY --images FOLDER --trials 16` searches the space of a study file and tracks the trials
in `mlflow.db` in the current folder. `benchmarks.study` compares it with ours. Of the space, it searches the network,
the batch size and the learning rate, and it augments the images as the study does. It ignores what few scripts have:
views of a validation image (`test_time`), label smoothing and schedules.
"""

from __future__ import annotations

import argparse
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import optuna
import torch

from benchmarks import tutorial
from fmnist_search.models.cnn import Cnn
from fmnist_search.recipe.groups import Augmentation, Data


class TrialSettings(NamedTuple):
    """The settings that all trials share."""

    space: dict[str, Any]
    epochs: int
    training_set: Any
    validation_set: Any
    workers: int
    device: str


def main() -> None:
    """Search the space of a study file as a typical script does."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("study", type=Path, help="study file with the space of the cnn")
    parser.add_argument("--images", type=Path, default=Path("data"), help="folder of images in torchvision's layout")
    parser.add_argument("--trials", type=int, help="number of trials")
    parser.add_argument("--seconds", type=float, help="seconds after which no further trial starts")
    parser.add_argument("--workers", type=int, default=0, help="num_workers of the DataLoader")
    arguments = parser.parse_args()
    if not arguments.trials and not arguments.seconds:
        parser.error("give --trials, --seconds, or both")
    study = tomllib.loads(arguments.study.read_text())
    seed = study.get("seed", 0)
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = Data(**study["data"])
    augmentation = Augmentation(**study["space"]["common"].get("augmentation", {}))
    training = tutorial.training_set(arguments.images, data, augmentation)
    validation = tutorial.validation_set(arguments.images, data)
    job = TrialSettings(study["space"], study["budget"]["epochs"], training, validation, arguments.workers, device)
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    mlflow.set_experiment("usual")
    search = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.MedianPruner()
    )
    with mlflow.start_run(run_name=study["name"]):
        search.optimize(lambda trial: objective(trial, job), n_trials=arguments.trials, timeout=arguments.seconds)
        mlflow.log_metric("best/val_accuracy", search.best_value)


def objective(trial: optuna.Trial, settings: TrialSettings) -> float:
    """Run one trial in a nested run: log parameters, then metrics after each epoch; prune if Optuna decides so."""
    with mlflow.start_run(run_name=f"trial {trial.number}", nested=True):
        model = tutorial.build_network(_suggest_network(trial, settings.space["cnn"])).to(settings.device)
        batch_size = _suggest(trial, "batch_size", settings.space["common"]["batch_size"])
        learning_rate = _suggest(trial, "learning_rate", settings.space["common"]["optimizer"]["learning_rate"])
        mlflow.log_params(trial.params)
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        training = tutorial.make_loader(
            settings.training_set, batch_size, settings.workers, settings.device, shuffle=True
        )
        validation = tutorial.make_loader(
            settings.validation_set, tutorial.VALIDATION_BATCH_SIZE, settings.workers, settings.device
        )
        accuracy = 0.0
        for epoch in range(1, settings.epochs + 1):
            started = time.perf_counter()
            loss = tutorial.train_epoch(model, training, optimizer, settings.device)
            accuracy = tutorial.validate(model, validation, settings.device)
            mlflow.log_metric("time/epoch_seconds", time.perf_counter() - started, step=epoch)
            mlflow.log_metric("train/loss", loss, step=epoch)
            mlflow.log_metric("val/accuracy", accuracy, step=epoch)
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy


def _suggest_network(trial: optuna.Trial, space: dict[str, Any]) -> Cnn:
    """Suggest a network of the space, with a width and a kernel size for each of its blocks."""
    chosen: dict[str, Any] = {"depth": _suggest(trial, "depth", space["depth"])}
    for name, domain in space.items():
        if name != "depth" and Cnn.is_active(name, chosen):
            chosen[name] = _suggest(trial, name, domain)
    return Cnn(**chosen)


def _suggest(trial: optuna.Trial, name: str, domain: Any) -> Any:
    """Suggest a value of a domain as in study files: a list is a choice, a table a range, a scalar is fixed."""
    match domain:
        case list():
            return trial.suggest_categorical(name, domain)
        case {"low": float(), "high": float()}:
            return trial.suggest_float(name, domain["low"], domain["high"], log=domain.get("log", False))
        case {"low": int(), "high": int()}:
            return trial.suggest_int(name, domain["low"], domain["high"], log=domain.get("log", False))
    return domain


if __name__ == "__main__":
    main()
