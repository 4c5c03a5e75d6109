"""Tests of `training.optim` against torch's own optimizers and schedules and against arithmetic in numpy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fmnist_search.data.images import Images
from fmnist_search.models.classifier import Classifier, build
from fmnist_search.models.cnn import Cnn
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.groups import Optimizer, Schedule
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.muon import Muon, orthogonalize
from fmnist_search.training.optim import AveragedWeights, learning_rates, make_optimizer

OPTIMIZER_NAMES = ("sgd", "adam", "adamw", "muon")
learning_rate_values = st.floats(1e-6, 10)
step_counts = st.integers(1, 500)


def schedule_curve(name: str, count: int, peak: float = 1.0, warmup: float = 0.25) -> list[float]:
    recipe = Recipe(optimizer=Optimizer(learning_rate=peak), schedule=Schedule(name=name, warmup=warmup))
    return learning_rates(recipe, count)


# ----------------------------------------------------------------------- learning-rate schedules


@given(st.sampled_from(["constant", "cosine", "one-cycle"]), step_counts, learning_rate_values, st.floats(0, 0.9))
def test_schedule_has_a_rate_for_each_step_up_to_its_peak(name: str, count: int, peak: float, warmup: float) -> None:
    values = schedule_curve(name, count, peak, warmup)
    assert len(values) == count
    assert all(0 <= value <= peak * (1 + 1e-12) for value in values)


@given(step_counts, learning_rate_values)
def test_constant_is_always_the_peak(count: int, peak: float) -> None:
    assert schedule_curve("constant", count, peak) == [peak] * count


@given(st.integers(2, 500), learning_rate_values)
def test_cosine_falls_from_the_peak_to_zero(count: int, peak: float) -> None:
    expected = peak * (1 + np.cos(np.pi * np.arange(count) / (count - 1))) / 2
    np.testing.assert_allclose(schedule_curve("cosine", count, peak), expected, rtol=1e-9, atol=1e-12 * peak)


@given(st.integers(2, 500), learning_rate_values, st.floats(0.01, 0.9))
def test_one_cycle_rises_once_and_falls_once(count: int, peak: float, warmup: float) -> None:
    values = schedule_curve("one-cycle", count, peak, warmup)
    assert values[0] == pytest.approx(peak / 25)
    assert values[-1] == pytest.approx(peak / 25 / 1e4)
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


@given(st.floats(0, 0.9))
def test_one_cycle_peaks_at_the_end_of_the_warmup(warmup: float) -> None:
    values = schedule_curve("one-cycle", 1_001, warmup=warmup)
    assert max(values) == pytest.approx(1, rel=1e-3)
    assert abs(values.index(max(values)) - 1_000 * warmup) <= 1


def test_one_cycle_equals_that_of_torch() -> None:
    values = schedule_curve("one-cycle", 1_000, warmup=0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1_000, pct_start=0.3)
    expected = []
    for _ in range(1_000):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(expected) < 1_000 else None
    # In torch the warm-up ends one step earlier.
    np.testing.assert_allclose(values, expected, atol=0.01)


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_training_of_a_single_step_uses_the_peak(name: str) -> None:
    assert schedule_curve(name, 1, peak=0.5) == [0.5]


# ------------------------------------------------------------------------------------ optimizers


def make_small_classifier(seed: int = 0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(Cnn(depth=2, width_1=4, width_2=8, hidden=8), 72.9, 90.0)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Images, batch: int) -> None:
    rows = slice(batch * 32, (batch + 1) * 32)
    loss = functional.cross_entropy(model(images.train.pixels[rows]), images.train.labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def make_torch_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Return the same optimizer as in torch's documentation, with parameters grouped by type, not fused."""
    norms = {p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    biases = {p for name, p in model.named_parameters() if name.endswith("bias")}
    without_decay = norms | biases
    groups = [
        {"params": [p for p in model.parameters() if p not in without_decay], "weight_decay": settings.weight_decay},
        {"params": list(without_decay), "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    if settings.name == "sgd":
        momentum, nesterov = settings.momentum, settings.nesterov
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov, foreach=False)
    rule: Callable[..., torch.optim.Optimizer] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return rule(groups, lr=rate, betas=(settings.momentum, 0.999), foreach=False)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizer_equals_that_of_torch(name: str, nesterov: bool, decay: float, images: Images) -> None:
    settings = Optimizer(name=name, learning_rate=1e-2, momentum=0.8, nesterov=nesterov, weight_decay=decay)
    ours, theirs = make_small_classifier(), make_small_classifier()
    first, second = make_optimizer(ours, settings), make_torch_optimizer(theirs, settings)
    for batch in range(5):
        train_step(ours, first, images, batch)
        train_step(theirs, second, images, batch)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_that_of_torch_for_hidden_matrices_and_adamw_for_all_else(nesterov: bool, images: Images) -> None:
    settings = Optimizer(name="muon", learning_rate=1e-2, momentum=0.8, nesterov=nesterov, weight_decay=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = build(Mlp(depth=2, width=16), 72.9, 90.0)
    theirs = copy.deepcopy(ours)
    hidden = [p for p in theirs.parameters() if p.ndim > 1][:-1]
    assert len(hidden) == 2
    muon = torch.optim.Muon(hidden, 1e-2, 0.1, 0.8, nesterov, adjust_lr_fn="match_rms_adamw")
    others = [p for p in theirs.parameters() if all(p is not weight for weight in hidden)]
    groups = [
        {"params": [p for p in others if (p.ndim > 1) is has_decay], "weight_decay": 0.1 * has_decay}
        for has_decay in (True, False)
    ]
    adamw = torch.optim.AdamW(groups, 1e-2, betas=(0.8, 0.999))
    first = make_optimizer(ours, settings)
    for batch in range(3):
        train_step(ours, first, images, batch)
        adamw.zero_grad()  # of all other parameters; `train_step` does it for the hidden ones
        train_step(theirs, muon, images, batch)
        adamw.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # torch computes in bfloat16


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_orthogonalized_matrix_keeps_its_directions_and_has_singular_values_near_one(
    rows: int, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    within = left.T @ orthogonalize(matrix) @ right.T
    kept = values > 0.02 * values.max()  # smaller ones grow, but need more iterations
    assert ((within.diagonal()[kept] > 0.6) & (within.diagonal() < 1.3)[kept]).all()
    torch.testing.assert_close(within, within.diagonal().diag(), atol=1e-6, rtol=0)
    torch.testing.assert_close(orthogonalize(7 * matrix), orthogonalize(matrix))


def test_muon_leaves_a_weight_without_gradient_or_with_one_of_zeros_where_it_is() -> None:
    model = make_small_classifier()
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, Optimizer(name="muon", weight_decay=0.0))
    optimizer.step()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_muon_takes_a_convolution_for_a_matrix_with_a_row_for_each_output_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    values, gradient = torch.randn(2, 8, 4, 3, 3, generator=generator)
    changed = []
    for reshaped in (values, values.flatten(1), values.contiguous(memory_format=torch.channels_last)):
        weight = nn.Parameter(reshaped.clone())
        weight.grad = gradient.reshape(reshaped.shape)
        Muon([{"params": [weight], "orthogonal": True, "nesterov": True}], 0.1, betas=(0.9, 0.999)).step()
        changed.append(weight.detach().reshape(values.shape))
    for other in changed[1:]:
        torch.testing.assert_close(other, changed[0])
    # With the step size of AdamW: 0.2 times the learning rate, in root mean square, for a wide matrix.
    assert (changed[0] - 0.999 * values).square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_optimizer_without_momentum_works(name: str, images: Images) -> None:
    model = make_small_classifier()
    train_step(model, make_optimizer(model, Optimizer(name=name, momentum=0.0, nesterov=True)), images, 0)


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_decay_applies_to_weights_but_not_to_biases_and_norms(name: str) -> None:
    model = make_small_classifier()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1.0)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, Optimizer(name=name, learning_rate=0.1, weight_decay=0.5)).step()
    decayed = {name for name, parameter in model.named_parameters() if (parameter < 1).all()}
    same = {name for name, parameter in model.named_parameters() if (parameter == 1).all()}
    weights = {
        f"network.{name}.weight"
        for name, module in model.network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert decayed == weights
    assert same == {name for name, _ in model.named_parameters()} - weights


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_only_adamw_decouples_the_decay_from_the_gradient(name: str) -> None:
    def shrinkage(rule: str) -> float:
        model = build(Mlp(depth=0))
        (weight,) = (p for p in model.parameters() if p.ndim > 1)
        nn.init.constant_(weight, 1.0)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        settings = Optimizer(name=rule, learning_rate=0.1, weight_decay=0.5, momentum=0.0)
        make_optimizer(model, settings).step()
        return 1 - weight.flatten()[0].item()

    assert shrinkage("adamw") == pytest.approx(0.1 * 0.5, rel=1e-4)
    # Adam normalises the decay, so that only the learning rate remains; sgd multiplies the two.
    assert shrinkage(name) == pytest.approx({"sgd": 0.1 * 0.5, "adam": 0.1}[name], rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("model", [Mlp(depth=0), Mlp(), Cnn(norm="none"), Cnn(activation="prelu", hidden=8)])
def test_each_parameter_is_in_one_group(model: Mlp | Cnn, name: str) -> None:
    network = build(model)
    optimizer = make_optimizer(network, Optimizer(name=name))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())


# ------------------------------------------------------------------------------- averaged weights


def network_with_batch_norm() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())


def float_state(model: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.double().numpy().copy() for k, v in model.state_dict().items() if v.is_floating_point()}


@settings(max_examples=15)
@given(st.floats(0.1, 1_000))
def test_averages_of_parameters_and_batch_norm_equal_arithmetic(images: Images, horizon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    model = network_with_batch_norm()
    averaged = AveragedWeights(model, horizon)
    expected = float_state(model)
    for count in range(1, 31):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        model(images.train.pixels[count : count + 8, None].float())
        averaged.update()
        decay = min(math.exp(-1 / horizon), (1 + count) / (10 + count))
        expected = {k: decay * expected[k] + (1 - decay) * v for k, v in float_state(model).items()}
    assert "1.running_mean" in expected
    for name, value in float_state(averaged.model).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_average_without_a_horizon_is_the_current_weights(images: Images) -> None:
    model = network_with_batch_norm()
    averaged = AveragedWeights(model, 0)
    for _ in range(3):
        with torch.no_grad():
            model[0].weight += torch.randn(3, 1, 3, 3)
        model(images.train.pixels[:8, None].float())
        averaged.update()
        for name, value in float_state(averaged.model).items():
            np.testing.assert_array_equal(value, float_state(model)[name], err_msg=name)


def test_average_is_a_copy_in_evaluation_mode() -> None:
    model = network_with_batch_norm()
    averaged = AveragedWeights(model, 10)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        averaged.model[0].weight.zero_()
    averaged.update()
    assert model.training
    assert not averaged.model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in averaged.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_average_of_constant_weights_is_the_weights() -> None:
    model = network_with_batch_norm()
    averaged = AveragedWeights(model, 100)
    for _ in range(50):
        averaged.update()
    for name, value in float_state(averaged.model).items():
        np.testing.assert_array_equal(value, float_state(model)[name], err_msg=name)


def test_initial_weights_are_soon_forgotten_with_any_horizon() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    averaged = AveragedWeights(model, 1e6)
    nn.init.ones_(model.weight)
    for _ in range(50):
        averaged.update()
    assert averaged.model.weight.item() > 0.99
