"""Tests of `training.engine`: what a recipe trains, that results repeat bit for bit, and what stays unchanged."""

from __future__ import annotations

import dataclasses
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fmnist_search.data.files import DataSource
from fmnist_search.data.images import MIN_PIXEL_STD_FRACTION, Images
from fmnist_search.data.loading import load_images
from fmnist_search.models.classifier import build
from fmnist_search.models.cnn import Cnn
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.families import Architecture
from fmnist_search.recipe.groups import Augmentation, Averaging, Data, Optimizer, Schedule
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import summarize
from fmnist_search.results.training import EpochReport, TrialResult
from fmnist_search.training.augmentation import mix
from fmnist_search.training.checkpoint import classifier_from_weights
from fmnist_search.training.devices import resolve_execution
from fmnist_search.training.engine import fit
from fmnist_search.training.optim import learning_rates
from fmnist_search.training.runtime import torch_settings
from fmnist_search.training.state import batch_sizes, initial_classifier
from fmnist_search.training.trial import run_trial

DATA_CONFIG = Data(train_images=500, validation=500)
TINY_RECIPE = Recipe(model=Mlp(depth=1, width=32), data=DATA_CONFIG, epochs=2, batch_size=128)
CNN_RECIPE = Recipe(
    model=Cnn(depth=2, width_1=8, width_2=8, dropout=0.3),
    augmentation=Augmentation(shift=2, flip=0.5, erasing=0.5),
    data=DATA_CONFIG,
    epochs=2,
    batch_size=128,
)
AUGMENTED_RECIPE = CNN_RECIPE.replace(
    {
        "augmentation.rotation": 10.0,
        "augmentation.mixup": 0.2,
        "augmentation.cutmix": 1.0,
        "optimizer.penalty": 1e-3,
        "normalisation": "per-pixel",
        "test_time": "flip",
    }
)
NO_LEARNING_CHANGES = {"optimizer.learning_rate": 1e-12, "optimizer.weight_decay": 0.0, "epochs": 1}
"""Changes after which a step changes no float32 weight: results are those of the initial weights."""


def reports_without_seconds(result: TrialResult) -> list[EpochReport]:
    """Return the epochs without their seconds, which differ from run to run."""
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in result.epochs]


def same_weights(one: TrialResult, other: TrialResult) -> bool:
    assert one.weights is not None
    assert other.weights is not None
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights | other.weights)


def initial_network(recipe: Recipe, images: Images) -> nn.Module:
    """Return the network before its first step."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return build(recipe.model, images.mean, images.std)


@pytest.mark.parametrize("count", [128, 129, 130, 200])
def test_last_batch_of_another_size_works_with_batch_norm(count: int, source: DataSource, execution: Execution) -> None:
    data = Data(train_images=count, validation=100)
    recipe = CNN_RECIPE.replace({"data.train_images": count, "data.validation": 100, "epochs": 1})
    assert run_trial(recipe, load_images(data, source), execution).reason is None


# -------------------------------------------------------------------------------- reproducibility


@pytest.mark.parametrize("recipe", [CNN_RECIPE, AUGMENTED_RECIPE], ids=["augmented", "all augmentations"])
def test_same_recipe_gives_the_same_bits(recipe: Recipe, images: Images, execution: Execution) -> None:
    once = run_trial(recipe, images, execution)
    torch.rand(7)
    again = run_trial(recipe, images, execution)
    assert reports_without_seconds(once) == reports_without_seconds(again)
    assert once.confusion == again.confusion
    assert same_weights(once, again)


def test_another_seed_gives_another_result(images: Images, execution: Execution) -> None:
    once, other = (
        run_trial(TINY_RECIPE, images, execution),
        run_trial(TINY_RECIPE.replace({"seed": 1}), images, execution),
    )
    assert reports_without_seconds(once) != reports_without_seconds(other)
    assert not same_weights(once, other)


def test_initial_weights_depend_on_the_seed_alone(images: Images, execution: Execution) -> None:
    recipe = CNN_RECIPE.replace(NO_LEARNING_CHANGES)
    weights = run_trial(recipe, images, execution).weights
    assert weights is not None
    for name, parameter in initial_network(recipe, images).named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=0, atol=1e-6)


def test_networks_that_are_built_in_other_threads_change_no_initial_weights(images: Images) -> None:
    expected = initial_classifier(CNN_RECIPE, images).state_dict()
    ended = threading.Event()

    def describe_networks() -> None:
        while not ended.is_set():
            summarize(Mlp(depth=1, width=8))
            classifier_from_weights(CNN_RECIPE, expected)

    thread = threading.Thread(target=describe_networks)
    thread.start()
    try:
        for _ in range(40):
            found = initial_classifier(CNN_RECIPE, images).state_dict()
            assert all(torch.equal(found[name], weights) for name, weights in expected.items())
    finally:
        ended.set()
        thread.join()


# --------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("model", [Mlp(depth=1, width=32), Cnn(depth=2, width_1=8, width_2=8)])
def test_result_equals_that_of_a_loop_with_a_data_loader(
    name: str, model: Architecture, images: Images, execution: Execution
) -> None:
    plain = {
        "optimizer.weight_decay": 0.0,
        "optimizer.clip_norm": 0.0,
        "label_smoothing": 0.0,
        "averaging.horizon": 0.0,
    }
    rate = {"optimizer.name": name, "optimizer.momentum": 0.9, "optimizer.nesterov": False, "batch_size": 150}
    recipe = dataclasses.replace(TINY_RECIPE, model=model).replace({**plain, **rate, "optimizer.learning_rate": 3e-3})
    result = run_trial(recipe, images, execution)

    network = initial_network(recipe, images).train()
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(network.parameters(), lr=3e-3, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, betas=(0.9, 0.999))
    dataset = TensorDataset(images.train.pixels, images.train.labels)
    generator = torch.Generator().manual_seed(recipe.seed)
    for report in result.epochs:
        order = torch.randperm(len(dataset), generator=generator).tolist()
        losses, seen = 0.0, 0
        for pixels, labels in DataLoader(dataset, batch_size=recipe.batch_size, sampler=order):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(pixels), labels)
            loss.backward()
            optimizer.step()
            losses, seen = losses + loss.item() * len(labels), seen + len(labels)
        assert seen == len(images.train)
        assert report.train_loss == pytest.approx(losses / seen, rel=1e-4)
    assert result.last_weights is not None
    for key, tensor in network.state_dict().items():
        if key in result.last_weights:
            torch.testing.assert_close(result.last_weights[key], tensor, rtol=1e-2, atol=1e-3, msg=key)


@pytest.mark.parametrize("model", [Mlp(depth=1, width=32), Cnn(depth=2, width_1=16, width_2=32)])
def test_accuracy_rises(model: Architecture, images: Images, execution: Execution) -> None:
    recipe = Recipe(model=model, data=DATA_CONFIG, epochs=8, batch_size=25, optimizer=Optimizer(learning_rate=5e-3))
    result = run_trial(recipe, images, execution)
    assert result.value is not None
    assert result.value > 0.6
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    assert result.epochs[-1].train_accuracy > 0.6


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_values_are_means_over_all_images(smoothing: float, images: Images, execution: Execution) -> None:
    recipe = TINY_RECIPE.replace({**NO_LEARNING_CHANGES, "label_smoothing": smoothing, "batch_size": 300})
    (epoch,) = run_trial(recipe, images, execution).epochs
    with torch.no_grad():
        logits = initial_network(recipe, images)(images.train.pixels)
        held_back = initial_network(recipe, images)(images.validation.pixels)
    expected = functional.cross_entropy(logits, images.train.labels, label_smoothing=smoothing).item()
    assert epoch.train_loss == pytest.approx(expected, rel=1e-4)
    assert epoch.train_accuracy == (logits.argmax(1) == images.train.labels).double().mean().item()
    # The validation loss is without label smoothing, so that recipes can be compared.
    assert epoch.val_loss == pytest.approx(
        functional.cross_entropy(held_back, images.validation.labels).item(), rel=1e-4
    )
    assert epoch.val_accuracy == (held_back.argmax(1) == images.validation.labels).double().mean().item()


def test_augmentation_applies_to_training_images_only(images: Images, execution: Execution) -> None:
    plain = TINY_RECIPE.replace(NO_LEARNING_CHANGES)
    (clean,) = run_trial(plain, images, execution).epochs
    (augmented,) = run_trial(plain.replace({"augmentation.erasing": 1.0}), images, execution).epochs
    assert augmented.train_loss != clean.train_loss
    assert augmented.val_loss == pytest.approx(clean.val_loss, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_like_the_images(kind: str, smoothing: float, images: Images, execution: Execution) -> None:
    augmentation = Augmentation(**{kind: 1.0})  # type: ignore[arg-type]
    base = TINY_RECIPE.replace({**NO_LEARNING_CHANGES, "label_smoothing": smoothing, "batch_size": 500})
    recipe = dataclasses.replace(base, augmentation=augmentation)
    (epoch,) = run_trial(recipe, images, execution).epochs
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(500, generator=generator)
    pixels, own_fraction = mix(images.train.pixels[order], augmentation, generator)
    own = functional.one_hot(images.train.labels[order], 10).float()
    target = own_fraction[:, None] * own + (1 - own_fraction[:, None]) * own.roll(1, 0)
    with torch.no_grad():
        logits = initial_network(recipe, images)(pixels)
    expected = functional.cross_entropy(logits, target, label_smoothing=smoothing).item()
    assert epoch.train_loss == pytest.approx(expected, rel=1e-5)
    assert epoch.train_accuracy == (logits.argmax(1) == target.argmax(1)).double().mean().item()


def test_order_of_images_changes_each_epoch(images: Images, execution: Execution) -> None:
    recipe = TINY_RECIPE.replace({**NO_LEARNING_CHANGES, "epochs": 4, "batch_size": 32})
    losses = {epoch.train_loss for epoch in run_trial(recipe, images, execution).epochs}
    # The same losses, summed in another order, differ in their last bits.
    assert len(losses) > 1
    assert max(losses) == pytest.approx(min(losses), rel=1e-4)


@dataclasses.dataclass(frozen=True)
class ZeroInitialized(Architecture):
    """A linear classifier whose initial weights are 0 for every seed."""

    family = "zeros"

    @property
    def widths(self) -> tuple[int, ...]:
        return ()

    def build_network(self, num_classes: int) -> nn.Module:
        linear = nn.Linear(28 * 28, num_classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.Flatten(), linear)


def test_seed_determines_the_order(images: Images, execution: Execution) -> None:
    recipe = dataclasses.replace(TINY_RECIPE, model=ZeroInitialized())
    first, second, other = (
        reports_without_seconds(run_trial(dataclasses.replace(recipe, seed=seed), images, execution))
        for seed in (0, 0, 1)
    )
    assert first == second
    assert first != other


def test_averaging_does_not_change_the_training(images: Images, execution: Execution) -> None:
    without = run_trial(TINY_RECIPE.replace({"averaging.horizon": 0.0}), images, execution)
    long = run_trial(TINY_RECIPE.replace({"averaging.horizon": 5.0}), images, execution)
    assert [epoch.train_loss for epoch in without.epochs] == [epoch.train_loss for epoch in long.epochs]
    assert [epoch.val_loss for epoch in without.epochs] != [epoch.val_loss for epoch in long.epochs]


def test_clipping_limits_a_step(images: Images, execution: Execution) -> None:
    optimizer = Optimizer(name="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0, clip_norm=1e-3)
    recipe = dataclasses.replace(TINY_RECIPE, optimizer=optimizer, averaging=Averaging(horizon=0.0), epochs=1)
    weights = run_trial(recipe, images, execution).weights
    assert weights is not None
    moved = torch.cat(
        [(weights[name] - p.detach()).flatten() for name, p in initial_network(recipe, images).named_parameters()]
    )
    steps = len(batch_sizes(500, recipe.batch_size))
    assert 0 < moved.norm() <= steps * 1e-3 * 1.01


def test_penalty_adds_the_gradient_of_the_norms(images: Images, execution: Execution) -> None:
    optimizer = Optimizer(name="sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    recipe = dataclasses.replace(TINY_RECIPE, optimizer=optimizer).replace(
        {"batch_size": 500, "epochs": 1, "averaging.horizon": 0.0}
    )
    without = run_trial(recipe, images, execution)
    penalised = run_trial(recipe.replace({"optimizer.penalty": 0.5}), images, execution)
    assert [epoch.train_loss for epoch in penalised.epochs] == [epoch.train_loss for epoch in without.epochs]
    assert penalised.weights is not None
    assert without.weights is not None
    for name, parameter in initial_network(recipe, images).named_parameters():
        change = 0.1 * 0.5 * parameter.detach() / parameter.detach().norm() if parameter.ndim > 1 else 0.0
        torch.testing.assert_close(penalised.weights[name], without.weights[name] - change, rtol=1e-4, atol=1e-6)


def test_penalty_shrinks_weights(images: Images, execution: Execution) -> None:
    sgd = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.1, "optimizer.weight_decay": 0.0}
    plain = CNN_RECIPE.replace({**sgd, "batch_size": 64})
    without, little, much = (
        sum(w.norm().item() for w in (run_trial(recipe, images, execution).weights or {}).values() if w.ndim > 1)
        for recipe in (plain, plain.replace({"optimizer.penalty": 0.01}), plain.replace({"optimizer.penalty": 0.1}))
    )
    assert without > little > much
    assert much < 0.9 * without


def test_penalty_of_a_zero_matrix_is_finite(images: Images, execution: Execution) -> None:
    result = run_trial(
        dataclasses.replace(TINY_RECIPE, model=ZeroInitialized(), optimizer=Optimizer(penalty=1.0)), images, execution
    )
    assert result.reason is None
    assert result.weights is not None
    assert all(tensor.isfinite().all() for tensor in result.weights.values())


@pytest.mark.parametrize("name", ["constant", "cosine", "one-cycle"])
def test_epoch_reports_the_learning_rate_of_its_last_step(name: str, images: Images, execution: Execution) -> None:
    recipe = dataclasses.replace(TINY_RECIPE, schedule=Schedule(name=name), epochs=3)
    steps = len(batch_sizes(500, recipe.batch_size))
    rates = learning_rates(recipe, 3 * steps)
    found = [epoch.learning_rate for epoch in run_trial(recipe, images, execution).epochs]
    assert found == [rates[steps - 1], rates[2 * steps - 1], rates[3 * steps - 1]]


def test_step_uses_the_learning_rate_of_the_schedule(images: Images, execution: Execution) -> None:
    optimizer = Optimizer(name="sgd", learning_rate=0.5, momentum=0.0, weight_decay=0.0)
    one_step = {"batch_size": 500, "epochs": 1, "averaging.horizon": 0.0, "model.depth": 0}
    recipe = dataclasses.replace(TINY_RECIPE, optimizer=optimizer, schedule=Schedule(name="one-cycle")).replace(
        one_step
    )
    weights = run_trial(recipe, images, execution).weights
    model = initial_network(recipe, images)
    functional.cross_entropy(model(images.train.pixels), images.train.labels).backward()
    assert weights is not None
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = parameter.detach() - learning_rates(recipe, 1)[0] * parameter.grad
        torch.testing.assert_close(weights[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [Mlp(depth=1, width=32), Cnn(depth=2, width_1=8, width_2=8)])
def test_bfloat16_result_is_near_that_of_float32(model: Architecture, images: Images, execution: Execution) -> None:
    full = run_trial(dataclasses.replace(TINY_RECIPE, model=model), images, execution).epochs[-1]
    half = run_trial(dataclasses.replace(TINY_RECIPE, model=model, precision="bfloat16"), images, execution).epochs[-1]
    assert half.train_loss != full.train_loss
    assert half.train_loss == pytest.approx(full.train_loss, rel=0.05)
    assert half.val_accuracy == pytest.approx(full.val_accuracy, abs=0.1)


def test_weights_are_float32_with_bfloat16_too(images: Images, execution: Execution) -> None:
    weights = run_trial(dataclasses.replace(TINY_RECIPE, precision="bfloat16"), images, execution).weights
    assert weights is not None
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_weights_contain_the_statistics_of_the_training_images(images: Images, execution: Execution) -> None:
    weights = run_trial(TINY_RECIPE, images, execution).weights
    assert weights is not None
    assert weights["mean"].item() == pytest.approx(images.mean)
    assert weights["deviation"].item() == pytest.approx(images.std)


def test_per_pixel_normalisation(images: Images, execution: Execution) -> None:
    weights = run_trial(TINY_RECIPE.replace({"normalisation": "per-pixel"}), images, execution).weights
    assert weights is not None
    pixels = images.train.pixels.numpy().astype(float)
    lower_bound = MIN_PIXEL_STD_FRACTION * pixels.std()
    np.testing.assert_allclose(weights["mean"].numpy(), pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(weights["deviation"].numpy(), np.maximum(pixels.std(0), lower_bound), rtol=1e-6)
    # Some pixels are below the lower bound and most are not, so that both cases are tested.
    assert 0 < (pixels.std(0) < lower_bound).mean() < 0.5


def test_unit_normalisation(images: Images, execution: Execution) -> None:
    result = run_trial(TINY_RECIPE.replace({"normalisation": "unit"}), images, execution)
    assert result.weights is not None
    assert (result.weights["mean"].item(), result.weights["deviation"].item()) == (0, 255)
    by_hand = dataclasses.replace(images, mean=0.0, std=255.0)
    assert reports_without_seconds(result) == reports_without_seconds(run_trial(TINY_RECIPE, by_hand, execution))


def test_deviation_of_a_constant_pixel_has_a_lower_bound(images: Images, execution: Execution) -> None:
    black = images.train.pixels.clone()
    black[:, 0, 0] = 0
    with_black_pixel = dataclasses.replace(images, train=dataclasses.replace(images.train, pixels=black))
    weights = run_trial(TINY_RECIPE.replace({"normalisation": "per-pixel"}), with_black_pixel, execution).weights
    assert weights is not None
    assert (weights["deviation"] >= 0.99 * MIN_PIXEL_STD_FRACTION * with_black_pixel.std).all()


def test_test_time_augmentation_changes_evaluation_only(images: Images, execution: Execution) -> None:
    plain = run_trial(TINY_RECIPE, images, execution)
    viewed = run_trial(TINY_RECIPE.replace({"test_time": "flip+shift"}), images, execution)
    assert same_weights(plain, viewed)
    assert [e.train_loss for e in viewed.epochs] == [e.train_loss for e in plain.epochs]
    assert [e.val_loss for e in viewed.epochs] != [e.val_loss for e in plain.epochs]


def test_fit_can_be_stopped_after_any_epoch(images: Images, execution: Execution) -> None:
    with torch_settings(execution):
        epochs = fit(TINY_RECIPE.replace({"epochs": 10_000}), images, execution)
        assert [next(epochs).report.epoch, next(epochs).report.epoch] == [1, 2]


# --------------------------------------------------------------------------- what stays unchanged


def test_trial_leaves_torch_numpy_and_python_as_they_were(images: Images) -> None:
    def global_state() -> list[object]:
        cudnn = torch.backends.cudnn
        threads = torch.get_num_threads()
        generators = [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()]
        return [threads, cudnn.benchmark, cudnn.deterministic, torch.is_grad_enabled(), *generators]

    before = global_state()
    run_trial(CNN_RECIPE, images, Execution(threads=3))
    assert global_state() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", [Mlp(depth=1, width=32), Cnn(depth=2, width_1=8, width_2=8)])
def test_cuda_repeats_its_bits_and_ends_near_the_cpu(
    model: Architecture, source: DataSource, images: Images, execution: Execution
) -> None:
    recipe = dataclasses.replace(TINY_RECIPE, model=model, epochs=3)
    cuda = resolve_execution("cuda")
    there = load_images(DATA_CONFIG, source, cuda.device)
    once, again = run_trial(recipe, there, cuda), run_trial(recipe, there, cuda)
    assert reports_without_seconds(once) == reports_without_seconds(again)
    assert same_weights(once, again)
    here = run_trial(recipe, images, execution).epochs[-1]
    # Another generator shuffles and other kernels add, so the results are only similar.
    assert once.epochs[-1].train_loss == pytest.approx(here.train_loss, rel=0.1)
    assert once.value == pytest.approx(here.val_accuracy, abs=0.1)
