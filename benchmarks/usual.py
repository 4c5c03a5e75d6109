"""Ours against the script that people write themselves: same space, images, epochs and seconds.

The script is written the way tutorials write it: torchvision's dataset with `ToTensor`, a DataLoader, float32, eager,
`.item()` after each batch, Adam, Optuna with its default sampler and its median pruner. It keeps no record. Ours is
the command line as users run it, everything in MLflow, without finalists.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import optuna
import torch
import typer
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks.machine import machine, versions
from fmnist_search.config import StudyConfig
from fmnist_search.data import DATASETS, Source, find, split, training_pool
from fmnist_search.places import image_cache

QUICK = Path(__file__).parents[1] / "studies" / "quick.toml"


def main(
    seconds: Annotated[float, typer.Option(help="Seconds that each of the two may search.", min=10)] = 300.0,
    epochs: Annotated[int, typer.Option(help="Epochs of a full trial.", min=1)] = 5,
    study: Annotated[Path, typer.Argument(help="Study file whose space both search.")] = QUICK,
    seed: Annotated[int, typer.Option(help="Seed of both searches.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Best validation accuracy and number of trials of both, one after the other."""
    changes = {"budget.epochs": epochs, "budget.minutes": seconds / 60, "finalists.recipes": 0, "seed": seed}
    config = StudyConfig.load(study, changes)
    results = {"usual script": _usual(config, seconds), "fmnist-search": _ours(study, changes)}
    if as_json:
        typer.echo(json.dumps({"machine": machine(), "versions": versions(), "seconds": seconds, **results}))
        return
    typer.echo(f"{machine()}; {versions()}; {seconds:.0f} s each, {epochs} epochs, {config.data.training_count} images")
    for name, (best, trials) in results.items():
        typer.echo(f"{name:14} best validation accuracy {best:.2%} in {trials} trials")


def _ours(study: Path, changes: dict[str, Any]) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"--set={name}={value}" for name, value in {**changes, "budget.trials": 10_000}.items()]
        command = [sys.executable, "-m", "fmnist_search", "search", str(study.resolve()), "--json", *settings]
        done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    summary = json.loads(done.stdout)
    completed = [row["value"] for row in summary["trials"] if row["state"] == "completed"]
    return max(completed), len(summary["trials"])


# ------------------------------------------------------------------------------------- the usual script


def _usual(config: StudyConfig, seconds: float) -> tuple[float, int]:
    torch.manual_seed(config.seed)
    source = Source(image_cache())
    chosen = split(training_pool("fashion-mnist", source).labels.numpy(), config.data)
    with tempfile.TemporaryDirectory() as folder:
        _as_torchvision_wants_it(Path(folder), source)
        dataset = datasets.FashionMNIST(folder, train=True, transform=transforms.ToTensor())
        training, validation = (Subset(dataset, indices.tolist()) for indices in chosen)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        search = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=config.seed),
            pruner=optuna.pruners.MedianPruner(),
        )
        started = time.monotonic()
        search.optimize(lambda trial: _objective(trial, config, training, validation), timeout=seconds)
        overrun = time.monotonic() - started
        typer.echo(f"the usual script ended after {overrun:.0f} s", err=True)
    return search.best_value, len(search.trials)


def _as_torchvision_wants_it(folder: Path, source: Source) -> None:
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in DATASETS["fashion-mnist"].digests:
        (raw / name).write_bytes(find(DATASETS["fashion-mnist"], name, source))


def _objective(trial: optuna.Trial, config: StudyConfig, training: Subset[Any], validation: Subset[Any]) -> float:
    space = config.space.plain()["cnn"]
    rates = config.space.plain()["common"]["optimizer"]["learning_rate"]
    batch_size = trial.suggest_categorical("batch_size", config.space.plain()["common"]["batch_size"])
    learning_rate = trial.suggest_float("learning_rate", rates["low"], rates["high"], log=True)
    layers: list[nn.Module] = []
    channels = 1
    depth = trial.suggest_categorical("depth", space["depth"])
    for block in range(1, depth + 1):
        width = trial.suggest_categorical(f"width_{block}", space[f"width_{block}"])
        kernel = trial.suggest_categorical(f"kernel_{block}", space[f"kernel_{block}"])
        layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if block < depth else []
        channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    criterion = nn.CrossEntropyLoss()
    accuracy = 0.0
    for epoch in range(config.budget.epochs):
        model.train()
        running_loss = 0.0
        for images, labels in DataLoader(training, batch_size=batch_size, shuffle=True):
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in DataLoader(validation, batch_size=1000):
                correct += (model(images).argmax(1) == labels).sum().item()
        accuracy = correct / len(validation)
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


if __name__ == "__main__":
    typer.run(main)
