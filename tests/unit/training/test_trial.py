"""Tests of `training.trial`: how a trial ends, how failures are reported, and which weights it returns."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import pytest
import torch

from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import MAX_PARAMETERS, build, count_parameters
from fmnist_search.models.cnn import Cnn
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.families import Architecture
from fmnist_search.recipe.groups import Averaging, Data, Optimizer
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.training.engine import fit
from fmnist_search.training.evaluation import evaluate
from fmnist_search.training.loop import EpochResult
from fmnist_search.training.runtime import torch_settings
from fmnist_search.training.trial import run_trial

DATA_CONFIG = Data(train_images=500, validation=500)
TINY_RECIPE = Recipe(model=Mlp(depth=1, width=16), data=DATA_CONFIG, epochs=4, batch_size=250)
OVERFITTING_RECIPE = Recipe(
    model=Mlp(depth=1, width=64),
    optimizer=Optimizer(learning_rate=2e-2),
    averaging=Averaging(horizon=0.0),
    data=DATA_CONFIG,
    epochs=12,
    batch_size=50,
)
"""Its validation loss rises while its accuracy still improves."""


class RecordingStopper:
    """A stopper that records its reports and returns the decision given for each epoch."""

    def __init__(self, decisions: dict[int, Decision] | None = None):
        self.decisions = decisions or {}
        self.reports: list[EpochReport] = []

    def __call__(self, report: EpochReport) -> Decision:
        self.reports.append(report)
        return self.decisions.get(report.epoch, Decision.CONTINUE)


# ---------------------------------------------------------------------------------------------- end


def test_trial_without_a_stopper_is_completed(images: Images, execution: Execution) -> None:
    stopper = RecordingStopper()
    result = run_trial(TINY_RECIPE, images, execution, stopper)
    assert (result.state, result.reason, result.error) == (TrialState.COMPLETED, None, None)
    assert [epoch.epoch for epoch in result.epochs] == [1, 2, 3, 4]
    assert tuple(stopper.reports) == result.epochs
    assert result.parameters == count_parameters(TINY_RECIPE.model)
    assert sum(epoch.seconds for epoch in result.epochs) <= result.seconds


@pytest.mark.parametrize(
    ("decision", "state"), [(Decision.PRUNE, TrialState.PRUNED), (Decision.INTERRUPT, TrialState.INTERRUPTED)]
)
def test_stopper_ends_a_trial_after_the_reported_epoch(
    decision: Decision, state: TrialState, images: Images, execution: Execution
) -> None:
    stopper = RecordingStopper({2: decision})
    result = run_trial(TINY_RECIPE, images, execution, stopper)
    assert result.state is state
    assert [epoch.epoch for epoch in result.epochs] == [1, 2]
    assert tuple(stopper.reports) == result.epochs
    assert result.reason is not None
    assert "epoch 2" in result.reason
    assert result.value == result.epochs[-1].val_accuracy
    assert result.weights is not None


@pytest.mark.parametrize("decision", [Decision.PRUNE, Decision.INTERRUPT])
def test_decision_after_the_last_epoch_is_ignored(decision: Decision, images: Images, execution: Execution) -> None:
    result = run_trial(TINY_RECIPE, images, execution, RecordingStopper({4: decision}))
    assert (result.state, result.reason, len(result.epochs)) == (TrialState.COMPLETED, None, 4)


def test_stopper_does_not_change_the_training(images: Images, execution: Execution) -> None:
    recipe = TINY_RECIPE.replace({"model.dropout": 0.5})

    def draw_numbers(_: EpochReport) -> Decision:
        torch.rand(5)
        return Decision.CONTINUE

    alone, watched = run_trial(recipe, images, execution), run_trial(recipe, images, execution, draw_numbers)
    assert [epoch.train_loss for epoch in watched.epochs] == [epoch.train_loss for epoch in alone.epochs]


def test_training_does_not_change_the_global_generator(images: Images, execution: Execution) -> None:
    drawn: list[float] = []

    def draw_numbers(_: EpochReport) -> Decision:
        drawn.extend(torch.rand(3).tolist())
        return Decision.CONTINUE

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = torch.rand(3 * TINY_RECIPE.epochs).tolist()
        torch.manual_seed(5)
        run_trial(TINY_RECIPE.replace({"model.dropout": 0.5}), images, execution, draw_numbers)
    assert drawn == expected


class FailingCallback:
    def __init__(self, error: BaseException):
        self.error = error

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("mine"), UserError("mine"), KeyboardInterrupt()])
def test_error_of_a_stopper_or_a_callback_is_raised(error: BaseException, images: Images, execution: Execution) -> None:
    def raise_error(_: EpochReport) -> Decision:
        raise error

    before = torch.get_rng_state()
    with pytest.raises(type(error)):
        run_trial(TINY_RECIPE, images, execution, raise_error)
    with pytest.raises(type(error)):
        run_trial(TINY_RECIPE, images, execution, training_callback=FailingCallback(error))
    assert torch.equal(torch.get_rng_state(), before)


NO_LEARNING_RECIPE = TINY_RECIPE.replace(
    {"optimizer.learning_rate": 1e-12, "optimizer.weight_decay": 0.0, "averaging.horizon": 0.0}
)
"""Its first epoch stays the best."""


@pytest.mark.parametrize("decision", Decision)
def test_early_stopping_overrides_every_decision(decision: Decision, images: Images, execution: Execution) -> None:
    stopper = RecordingStopper({3: decision})
    result = run_trial(NO_LEARNING_RECIPE.replace({"patience": 2}), images, execution, stopper)
    assert (result.state, result.reason) == (
        TrialState.COMPLETED,
        "early stopping: no better val_accuracy since epoch 1",
    )
    assert [epoch.epoch for epoch in result.epochs] == [1, 2, 3]
    assert tuple(stopper.reports) == result.epochs
    assert (result.value, result.best_epoch) == (result.epochs[-1].val_accuracy, 1)
    assert result.last_weights is not None


@pytest.mark.parametrize("patience", [0, 3, 4])
def test_unused_patience_changes_nothing(patience: int, images: Images, execution: Execution) -> None:
    result = run_trial(NO_LEARNING_RECIPE.replace({"patience": patience}), images, execution)
    assert (result.state, result.reason, len(result.epochs)) == (TrialState.COMPLETED, None, 4)


@pytest.mark.parametrize("keep", ["val_accuracy", "val_loss"])
def test_patience_follows_the_metric_that_selects_weights(keep: str, images: Images, execution: Execution) -> None:
    recipe = OVERFITTING_RECIPE.replace({"keep": keep})
    scores = [
        (e.val_accuracy if keep == "val_accuracy" else -(e.val_loss or 0)) or 0.0
        for e in run_trial(recipe, images, execution).epochs
    ]
    first_without_improvement = next(at for at in range(1, len(scores)) if scores[at] <= max(scores[:at])) + 1
    assert first_without_improvement < len(scores), "the recipe must have an epoch without improvement"
    result = run_trial(recipe.replace({"patience": 1}), images, execution)
    assert (result.state, len(result.epochs)) == (TrialState.COMPLETED, first_without_improvement)


# -------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    "model", [Mlp(depth=4, width=32), Cnn(depth=2, width_1=8, width_2=8, norm="none")], ids=["mlp", "cnn"]
)
def test_diverging_training_fails_and_reports_finite_values_only(
    model: Architecture, images: Images, execution: Execution
) -> None:
    stopper = RecordingStopper()
    recipe = dataclasses.replace(TINY_RECIPE, model=model, optimizer=Optimizer(name="sgd", learning_rate=100.0))
    result = run_trial(recipe.replace({"batch_size": 20}), images, execution, stopper)
    assert result.state is TrialState.FAILED
    assert result.reason is not None
    assert "not finite" in result.reason
    assert len(result.epochs) < recipe.epochs
    assert tuple(stopper.reports) == result.epochs
    assert all(math.isfinite(x) for epoch in result.epochs for x in (epoch.train_loss, epoch.val_loss or 0))


def test_training_that_diverges_late_keeps_its_finite_epochs(images: Images, execution: Execution) -> None:
    bright = images.train.pixels.float()
    one = dataclasses.replace(images, train=dataclasses.replace(images.train, pixels=bright))

    def poison(report: EpochReport) -> Decision:
        if report.epoch == 2:
            bright[0] = math.inf
        return Decision.CONTINUE

    result = run_trial(TINY_RECIPE, one, execution, poison)
    assert (result.state, [epoch.epoch for epoch in result.epochs]) == (TrialState.FAILED, [1, 2])
    assert result.reason is not None
    assert "epoch 3" in result.reason
    assert result.weights is not None
    weights = [*result.weights.values(), *(result.last_weights or {}).values()]
    assert all(tensor.isfinite().all() for tensor in weights)


def test_network_that_is_too_large_fails_before_it_is_built(images: Images, execution: Execution) -> None:
    widths = {f"width_{block}": 4096 for block in range(1, 6)}
    kernels = {f"kernel_{block}": 7 for block in range(1, 6)}
    giant = Cnn(depth=5, convolutions=2, **widths, **kernels)  # type: ignore[arg-type]
    assert count_parameters(giant) > 20 * MAX_PARAMETERS
    started = time.perf_counter()
    result = run_trial(dataclasses.replace(TINY_RECIPE, model=giant), images, execution)
    # Building some 30 GB of weights would take longer, if they fit at all.
    assert time.perf_counter() - started < 20
    assert (result.state, result.epochs, result.value, result.weights) == (TrialState.FAILED, (), None, None)
    assert result.reason is not None
    assert "parameters" in result.reason
    assert f"{MAX_PARAMETERS:,}" in result.reason


def test_error_of_the_training_is_a_result_with_a_traceback(images: Images) -> None:
    result = run_trial(TINY_RECIPE, images, Execution(device="nowhere"))
    assert (result.state, result.epochs) == (TrialState.FAILED, ())
    assert result.reason is not None
    assert "\n" not in result.reason
    assert result.error is not None
    assert result.error.startswith("Traceback")


# ------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("keep", ["val_accuracy", "val_loss"])
def test_weights_are_those_of_the_best_epoch(keep: str, images: Images, execution: Execution) -> None:
    result = run_trial(OVERFITTING_RECIPE.replace({"keep": keep}), images, execution)
    scores = [(e.val_accuracy if keep == "val_accuracy" else -(e.val_loss or 0)) for e in result.epochs]
    best = scores.index(max(scores)) + 1  # type: ignore[type-var]
    assert result.best_epoch == best
    # Otherwise the test would not show that later epochs leave these weights alone.
    assert best < len(result.epochs)
    assert result.weights is not None
    model = build(OVERFITTING_RECIPE.model)
    model.load_state_dict(result.weights)
    again = evaluate(model.eval(), images.validation)
    assert again.accuracy == result.epochs[best - 1].val_accuracy
    assert again.loss == pytest.approx(result.epochs[best - 1].val_loss, rel=1e-6)


def test_first_of_equally_good_epochs_is_the_best(images: Images, execution: Execution) -> None:
    still = {"optimizer.learning_rate": 1e-12, "optimizer.weight_decay": 0.0}
    result = run_trial(TINY_RECIPE.replace(still), images, execution)
    assert len({epoch.val_accuracy for epoch in result.epochs}) == 1
    assert result.best_epoch == 1


def test_loss_and_accuracy_select_different_weights(images: Images, execution: Execution) -> None:
    by_accuracy = run_trial(OVERFITTING_RECIPE, images, execution)
    by_loss = run_trial(OVERFITTING_RECIPE.replace({"keep": "val_loss"}), images, execution)
    assert by_accuracy.best_epoch != by_loss.best_epoch
    assert by_accuracy.value == by_loss.value


def test_weights_reproduce_the_value_of_the_trial(images: Images, execution: Execution) -> None:
    recipe = dataclasses.replace(TINY_RECIPE, model=Cnn(depth=2, width_1=8, width_2=8), epochs=1)
    result = run_trial(recipe, images, execution)
    assert result.weights is not None
    model = build(recipe.model)
    model.load_state_dict(result.weights)
    assert evaluate(model.eval(), images.validation).accuracy == result.value


def test_value_is_that_of_the_last_epoch_and_not_the_best(images: Images, execution: Execution) -> None:
    result = run_trial(OVERFITTING_RECIPE, images, execution)
    accuracies = [epoch.val_accuracy for epoch in result.epochs]
    assert result.value == accuracies[-1]
    assert result.best_val_accuracy == max(a for a in accuracies if a is not None)
    assert result.best_val_accuracy > result.value  # type: ignore[operator]


def test_last_weights_reproduce_the_value(images: Images, execution: Execution) -> None:
    result = run_trial(OVERFITTING_RECIPE, images, execution)
    assert result.last_weights is not None
    model = build(OVERFITTING_RECIPE.model)
    model.load_state_dict(result.last_weights)
    assert evaluate(model.eval(), images.validation).accuracy == result.value


def test_confusion_is_that_of_the_last_epoch(images: Images, execution: Execution) -> None:
    result = run_trial(OVERFITTING_RECIPE, images, execution)
    assert result.confusion is not None
    assert sum(map(sum, result.confusion)) == len(images.validation)
    assert sum(row[label] for label, row in enumerate(result.confusion)) / len(images.validation) == result.value


def test_weights_are_the_last_without_validation_images(source: DataSource, execution: Execution) -> None:
    images = load_images(Data(train_images=300, validation=0), source)
    recipe = TINY_RECIPE.replace({"data.train_images": 300, "data.validation": 0, "epochs": 3})
    result = run_trial(recipe, images, execution)
    assert (result.state, result.value, result.best_val_accuracy) == (TrialState.COMPLETED, None, None)
    assert (result.confusion, result.best_epoch) == (None, 3)
    assert all(epoch.val_loss is None and epoch.val_accuracy is None for epoch in result.epochs)
    with torch_settings(execution):
        *_, last = fit(recipe, images, execution)
    assert result.weights is not None
    for name, tensor in last.classifier.state_dict().items():
        assert torch.equal(result.weights[name], tensor), name


def test_results_are_compared_and_printed_without_weights(images: Images, execution: Execution) -> None:
    result = run_trial(TINY_RECIPE, images, execution)
    assert dataclasses.replace(result, weights=None, last_weights=None) == result
    assert "tensor" not in repr(result)
