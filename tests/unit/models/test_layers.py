"""Layers: the cheaper order gives the same outputs, and dropout has its own random generator."""

from __future__ import annotations

import dataclasses
import itertools
import threading

import pytest
import torch
from torch import nn

from fmnist_search.data.images import Images
from fmnist_search.models.activations import ACTIVATIONS
from fmnist_search.models.cnn import Cnn
from fmnist_search.models.layers import DownsamplingConv2d, Dropout, make_activation
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.families import Architecture
from fmnist_search.recipe.groups import Augmentation, Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import EpochReport, TrialResult
from fmnist_search.training.trial import run_trial

POOL_TYPES = (nn.MaxPool2d, nn.AvgPool2d)
ACTIVATION_TYPES = tuple(type(make_activation(name)) for name in ACTIVATIONS)
NOT_MONOTONIC = ("gelu", "silu", "prelu")
DATA_CONFIG = Data(train_images=500, validation=500)


def build_network(activation: str, pool: str, norm: str = "batch", convolutions: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    network = Cnn(
        depth=3,
        width_1=8,
        width_2=8,
        width_3=16,
        activation=activation,
        pool=pool,
        norm=norm,
        convolutions=convolutions,
    ).build_network(10)
    assert isinstance(network, nn.Sequential)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # with negative weights, too
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network


def pools_before_activations(layers: nn.Sequential) -> bool:
    """Return whether the pools come before the activations of their blocks; all do, or none."""
    found = set()
    for before, layer, after in zip([*layers][:-2], [*layers][1:-1], [*layers][2:], strict=True):
        if isinstance(layer, POOL_TYPES):
            assert isinstance(before, ACTIVATION_TYPES) != isinstance(after, ACTIVATION_TYPES)
            found.add(isinstance(after, ACTIVATION_TYPES))
    (first,) = found
    return first


def activations_before_pools(layers: nn.Sequential) -> nn.Sequential:
    usual = list(layers)
    for index, layer in enumerate(usual[:-1]):
        if isinstance(layer, POOL_TYPES):
            usual[index : index + 2] = [usual[index + 1], layer]
    return nn.Sequential(*usual)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu"])
def test_a_maximum_pool_before_a_monotonic_activation_changes_no_bit(activation: str) -> None:
    images = torch.randn(16, 1, IMAGE_SIZE, IMAGE_SIZE)
    for norm, convolutions, is_training in itertools.product(("batch", "group", "none"), (1, 2), (True, False)):
        network = build_network(activation, "max", norm, convolutions).train(is_training)
        assert pools_before_activations(network)
        usual = activations_before_pools(network)
        assert not pools_before_activations(usual)
        assert torch.equal(network(images), usual(images)), (norm, convolutions, is_training)


def test_the_pool_comes_last_where_the_order_changes_the_result() -> None:
    for activation, pool in [*((name, "average") for name in ACTIVATIONS), *((n, "max") for n in NOT_MONOTONIC)]:
        assert not pools_before_activations(build_network(activation, pool)), (activation, pool)


def test_every_activation_after_its_pool_is_monotonic() -> None:
    values = torch.linspace(-30, 30, 20_001)
    for name in ACTIVATIONS:
        if pools_before_activations(build_network(name, "max")):
            assert (make_activation(name)(values).diff() >= 0).all(), name


# --------------------------------------------------------------------------- stems, heads, downsampling


def test_the_stem_makes_the_pixels_of_each_square_channels() -> None:
    stem, *_ = Cnn(stem="space_to_depth").build_network(10)  # type: ignore[misc]
    images = torch.randn(3, 1, IMAGE_SIZE, IMAGE_SIZE)
    expected = torch.stack([images[:, 0, row::2, column::2] for row in (0, 1) for column in (0, 1)], dim=1)
    assert torch.equal(stem(images), expected)


def test_the_flattened_head_sees_where_values_are_and_the_average_does_not() -> None:
    for head, is_position_seen in (("flatten", True), ("average", False)):
        torch.manual_seed(0)
        *_, values, last = Cnn(depth=1, width_1=8, head=head).build_network(10)  # type: ignore[misc]
        maps = torch.randn(2, 8, IMAGE_SIZE, IMAGE_SIZE)
        moved = last(values(maps.roll(5, dims=3)))
        assert torch.allclose(moved, last(values(maps)), atol=1e-5) != is_position_seen, head


@pytest.mark.parametrize("inputs", [4, 16])
def test_downsampling_has_the_values_and_gradients_of_a_convolution(inputs: int) -> None:
    """With 4 channels, channels last, a plain convolution ended the process on CPUs (oneDNN issue 6035)."""
    layer = DownsamplingConv2d(inputs, 8, 2).to(memory_format=torch.channels_last)
    images = torch.randn(100, inputs, 28, 28).to(memory_format=torch.channels_last).requires_grad_()
    usual = nn.Conv2d(inputs, 8, 1, 2, bias=False).double()
    usual.weight.data = layer.weight.data.double()
    usual_images = images.detach().double().contiguous().requires_grad_()
    found, expected = layer(images), usual(usual_images)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    for variable, usual_variable in ((layer.weight, usual.weight), (images, usual_images)):
        (gradient,) = torch.autograd.grad(found.square().sum(), variable, retain_graph=True)
        (usual_gradient,) = torch.autograd.grad(expected.square().sum(), usual_variable, retain_graph=True)
        assert torch.allclose(gradient.double(), usual_gradient, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------- dropout


def test_dropout_keeps_its_share_of_values_and_the_mean() -> None:
    layer = Dropout(0.3)
    layer.generator = torch.Generator().manual_seed(0)
    values = layer(torch.ones(200_000))
    assert (values == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert values.mean().item() == pytest.approx(1, abs=0.01)
    assert values[values > 0].unique().tolist() == pytest.approx([1 / 0.7])


def test_dropout_changes_nothing_in_evaluation_mode() -> None:
    values = torch.randn(100)
    assert torch.equal(Dropout(0.9).eval()(values), values)


def test_dropout_draws_only_from_its_own_generator() -> None:
    def draw() -> torch.Tensor:
        layer = Dropout(0.5)
        layer.generator = torch.Generator().manual_seed(3)
        output: torch.Tensor = layer(torch.ones(1_000))
        return output

    before = torch.get_rng_state()
    once = draw()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(draw(), once)


@pytest.mark.parametrize(
    "model", [Cnn(depth=2, width_1=8, width_2=8, dropout=0.5), Mlp(depth=2, width=64, dropout=0.5)]
)
def test_trainings_in_two_threads_give_the_same_bits_as_alone(
    model: Architecture, images: Images, execution: Execution
) -> None:
    augmentation = Augmentation(shift=2, flip=0.5, erasing=0.5)
    recipe = Recipe(model=model, augmentation=augmentation, data=DATA_CONFIG, epochs=3, batch_size=50)
    recipes = [recipe, recipe.replace({"seed": 1})]
    alone = [run_trial(each, images, execution) for each in recipes]
    together: dict[int, TrialResult] = {}
    start = threading.Barrier(2)

    def train(index: int) -> None:
        start.wait()
        together[index] = run_trial(recipes[index], images, execution)

    threads = [threading.Thread(target=train, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, result in enumerate(alone):
        assert reports_without_seconds(together[index]) == reports_without_seconds(result)
        assert together[index].weights is not None
        assert result.weights is not None
        for name, tensor in result.weights.items():
            assert torch.equal(together[index].weights[name], tensor), name  # type: ignore[index]


def reports_without_seconds(result: TrialResult) -> list[EpochReport]:
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in result.epochs]
