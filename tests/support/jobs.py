"""Jobs for execution backends that record what happens to them, and small recipes that they train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from fmnist_search.data.images import Images
from fmnist_search.execution.backend import Backend
from fmnist_search.execution.job import Job, LossCause
from fmnist_search.models.cnn import Cnn
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.groups import Augmentation, Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult

DATA_CONFIG = Data(train_images=500, validation=500)
TINY_RECIPE = Recipe(model=Mlp(depth=1, width=16), data=DATA_CONFIG, epochs=3, batch_size=100)
CNN_RECIPE = Recipe(
    model=Cnn(depth=2, width_1=8, width_2=8, dropout=0.3),
    augmentation=Augmentation(shift=2, flip=0.5, erasing=0.5),
    data=DATA_CONFIG,
    epochs=2,
    batch_size=64,
)
LONG_RECIPE = CNN_RECIPE.replace({"epochs": 1_000, "model.width_1": 32, "model.width_2": 32})
"""An epoch takes a good part of a second, and there are too many for a test."""
SLOW_EPOCH_CHANGES = {"epochs": 1_000, "model.width_1": 256, "model.width_2": 256, "model.kernel_1": 7}
"""Make an epoch of the recipe take minutes."""


class RecordingJob:
    """A job that records its reports and its end, and decides after each epoch with `decide`."""

    worker = -1
    worker_name = ""

    def __init__(
        self,
        recipe: Recipe,
        images: Images,
        decide: Callable[[EpochReport], Decision] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
        checkpoint_seconds: float | None = None,
    ):
        self.recipe = recipe
        self.images = images
        self.decide = decide or (lambda _: Decision.CONTINUE)
        self.checkpoint = checkpoint
        self.checkpoint_seconds = checkpoint_seconds
        self.reports: list[EpochReport] = []
        self.checkpoints: list[bytes] = []
        self.result: TrialResult | None = None
        self.seconds = 0.0
        self.lost_reasons: list[str] = []
        self.loss_cause: LossCause | None = None

    def on_epoch(self, report: EpochReport) -> Decision:
        assert not self.has_ended
        self.reports.append(report)
        return self.decide(report)

    def on_checkpoint(self, content: bytes) -> None:
        assert not self.has_ended
        self.checkpoints.append(content)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        assert not self.has_ended
        self.result, self.seconds = result, seconds

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        assert not self.has_ended
        self.lost_reasons.append(reason)
        self.loss_cause = cause

    @property
    def has_ended(self) -> bool:
        return self.result is not None or bool(self.lost_reasons)

    @property
    def finished_result(self) -> TrialResult:
        assert self.result is not None
        return self.result


def run_all(backend: Backend, jobs: Iterable[Job]) -> None:
    left = iter(jobs)
    backend.run(lambda: next(left, None))


def reports_without_seconds(result: TrialResult) -> list[EpochReport]:
    """Return the epoch reports without their seconds, which differ between runs."""
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in result.epochs]


def assert_same_result(one: TrialResult, other: TrialResult) -> None:
    assert (one.state, one.value, one.best_epoch, one.parameters) == (
        other.state,
        other.value,
        other.best_epoch,
        other.parameters,
    )
    assert reports_without_seconds(one) == reports_without_seconds(other)
    assert one.confusion == other.confusion
    for ours, theirs in ((one.weights, other.weights), (one.last_weights, other.last_weights)):
        assert ours is not None
        assert theirs is not None
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
