"""Tests of `training.eager`: progress within an epoch."""

from __future__ import annotations

import dataclasses

import pytest

from fmnist_search.data.images import Images
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import EpochReport
from fmnist_search.training.engine import fit
from fmnist_search.training.loop import Progress
from fmnist_search.training.runtime import torch_settings

RECIPE = Recipe(model=Mlp(depth=1, width=16), data=Data(train_images=500, validation=500), epochs=3, batch_size=48)


def train(
    images: Images, execution: Execution, seen: list[Progress] | None, interval: float = 0.0
) -> list[EpochReport]:
    callback = None if seen is None else seen.append
    with torch_settings(execution):
        epochs = fit(RECIPE, images, execution, progress_callback=callback, progress_interval=interval)
        return [dataclasses.replace(epoch.report, seconds=0.0) for epoch in epochs]


def test_progress_covers_each_epoch_and_changes_no_bit(images: Images, execution: Execution) -> None:
    seen: list[Progress] = []
    reports = train(images, execution, seen)
    assert reports == train(images, execution, None)
    assert [progress.epoch for progress in seen] == [1] * 11 + [2] * 11 + [3] * 11
    assert [progress.fraction for progress in seen[:11]] == pytest.approx([n * 0.096 for n in range(1, 11)] + [1.0])
    for report, last in zip(reports, seen[10::11], strict=True):
        assert (last.loss, last.accuracy) == pytest.approx((report.train_loss, report.train_accuracy))


def test_interval_between_reports_is_kept(images: Images, execution: Execution) -> None:
    seen: list[Progress] = []
    train(images, execution, seen, interval=3_600.0)
    # perf_counter may start near 0, so that even the first report is due after an hour alone.
    assert len(seen) <= 1
