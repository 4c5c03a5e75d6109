"""The contract of every family of networks. It applies to each family that is registered."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import MAX_PARAMETERS, Classifier, build, count_parameters
from fmnist_search.models.cnn import Cnn
from fmnist_search.recipe.datasets import NUM_CLASSES
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.families import FAMILIES, Architecture
from fmnist_search.recipe.groups import Augmentation, Optimizer
from fmnist_search.recipe.hyperparameters import hyperparameters
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.autotune import PRECISIONS
from fmnist_search.training.checkpoint import Checkpoint
from fmnist_search.training.evaluation import autocast
from fmnist_search.training.loop import EpochResult
from fmnist_search.training.optim import make_optimizer
from fmnist_search.training.trial import run_trial
from fmnist_search.training.trial_checkpoints import parse_checkpoint, serialize_checkpoint
from tests.support.jobs import assert_same_result
from tests.support.strategies import architectures, hyperparameter_values

MAX_WIDTH = 12
"""The largest integer that is drawn for a width: enough for all shapes of networks, and fast."""

each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def build_seeded(architecture: Architecture, images: Images, seed: int = 0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(architecture, images.mean, images.std)


def loss_of(model: Classifier, images: Images, count: int) -> Tensor:
    return functional.cross_entropy(model(images.train.pixels[:count]), images.train.labels[:count])


# ------------------------------------------------------------------------------------------ shape


@each_family
@settings(max_examples=8)
@given(data=st.data())
def test_one_image_and_several_give_finite_logits(
    family: type[Architecture], images: Images, data: st.DataObject
) -> None:
    model = build_seeded(data.draw(architectures(family, MAX_WIDTH)), images).eval()
    with torch.no_grad():
        many, one = model(images.train.pixels[:5]), model(images.train.pixels[:1])
    assert (many.shape, one.shape, many.dtype) == ((5, NUM_CLASSES), (1, NUM_CLASSES), torch.float32)
    assert many.isfinite().all()
    # The logits of an image do not depend on the other images of the batch.
    torch.testing.assert_close(one, many[:1], rtol=1e-4, atol=1e-4)


@each_family
def test_pixels_of_any_type_give_the_same_logits(family: type[Architecture], images: Images) -> None:
    model = build_seeded(family(), images).eval()
    pixels = images.train.pixels[:4]
    assert torch.equal(model(pixels.float()), model(pixels))
    assert torch.equal(model(pixels.long()), model(pixels))


@each_family
def test_the_network_gets_normalised_images(family: type[Architecture], images: Images) -> None:
    model = build_seeded(family(), images).eval()
    pixels = images.train.pixels[:4]
    normalised = ((pixels.float() - images.mean) / images.std).unsqueeze(1)
    torch.testing.assert_close(model(pixels), model.network(normalised))


@each_family
@settings(max_examples=8)
@given(data=st.data(), precision=st.sampled_from(PRECISIONS))
def test_a_finite_gradient_reaches_every_parameter_in_every_precision(
    family: type[Architecture], images: Images, data: st.DataObject, precision: str
) -> None:
    model = build_seeded(data.draw(architectures(family, MAX_WIDTH)), images)
    with autocast(torch.device("cpu"), precision):
        logits = model(images.train.pixels[:8])
    functional.cross_entropy(logits.float(), images.train.labels[:8]).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


# ------------------------------------------------------------------------------------- parameters


@each_family
@settings(max_examples=15)
@given(data=st.data())
def test_parameters_are_counted_without_building(
    family: type[Architecture], images: Images, data: st.DataObject
) -> None:
    architecture = data.draw(architectures(family, MAX_WIDTH))
    assert count_parameters(architecture) == sum(p.numel() for p in build_seeded(architecture, images).parameters())


def test_the_default_cnn_has_the_parameters_that_follow_from_its_layers() -> None:
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 128)
    norms = 2 * (32 + 64 + 128)
    head = 128 * 10 + 10
    assert count_parameters(Cnn()) == convolutions + norms + head == 94_186


@each_family
def test_by_default_no_gradient_is_all_zero(family: type[Architecture], images: Images) -> None:
    model = build_seeded(family(), images)
    loss_of(model, images, 64).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


SMALLER_DEFAULTS: dict[str, dict[str, int]] = {
    "cnn": {"width_1": 8, "width_2": 16, "width_3": 32},
    "vgg": {"width": 8},
    "resnet": {"blocks": 1, "width": 8},
}
"""Smaller networks for families whose default network is slow."""


@each_family
def test_it_can_fit_64_images(family: type[Architecture], images: Images) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(family(**SMALLER_DEFAULTS.get(family.family, {})), images.mean, images.std)
        optimizer = make_optimizer(model, Optimizer(learning_rate=1e-2, weight_decay=0.0))
        for step in itertools.count():
            assert step < 80, "some of the 64 images are still misclassified"
            optimizer.zero_grad()
            loss_of(model, images, 64).backward()
            optimizer.step()
            if step % 10 == 9:
                guesses = copy.deepcopy(model).eval()(images.train.pixels[:64]).argmax(1)
                if torch.equal(guesses, images.train.labels[:64]):
                    break


@each_family
def test_its_training_goes_on_from_a_checkpoint_with_the_same_bits(
    family: type[Architecture], images: Images, execution: Execution
) -> None:
    class Serializer:
        def on_epoch_end(self, _: EpochResult, state: dict[str, Any]) -> None:
            contents.append(serialize_checkpoint(Checkpoint(recipe, vars(execution), [], state)))

    contents: list[bytes] = []
    few = dataclasses.replace(
        images,
        train=LabelledImages(images.train.pixels[:40], images.train.labels[:40]),
        validation=LabelledImages(images.validation.pixels[:20], images.validation.labels[:20]),
    )
    dropout = {"dropout": 0.3} if "dropout" in family.__dataclass_fields__ else {}
    model = family(**SMALLER_DEFAULTS.get(family.family, {}), **dropout)
    recipe = Recipe(model=model, batch_size=20, epochs=3, augmentation=Augmentation(shift=2))
    uninterrupted = run_trial(recipe, few, execution, training_callback=Serializer())
    for content in contents:
        resumed = run_trial(recipe, few, execution, resume_from=parse_checkpoint(content).state)
        assert_same_result(resumed, uninterrupted)


# ----------------------------------------------------------------------------------------- values


@each_family
@settings(max_examples=5)
@given(data=st.data())
def test_the_seed_decides_the_initial_weights(family: type[Architecture], images: Images, data: st.DataObject) -> None:
    architecture = data.draw(architectures(family, MAX_WIDTH))
    once, again, other = (build_seeded(architecture, images, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    assert any(not torch.equal(value, other[name]) for name, value in once.items())


@each_family
@settings(max_examples=5)
@given(data=st.data())
def test_weights_load_from_a_file_and_from_a_plain_dictionary(
    family: type[Architecture], images: Images, data: st.DataObject
) -> None:
    architecture = data.draw(architectures(family, MAX_WIDTH))
    model = build_seeded(architecture, images)
    loss_of(model, images, 8).backward()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    # Formats other than pickle store only names and tensors, without the metadata of a state_dict.
    for state in (torch.load(file, weights_only=True), dict(model.state_dict())):
        again = build(architecture)
        again.load_state_dict(state)
        assert_same_network(again, model, images)


def assert_same_network(one: Classifier, other: Classifier, images: Images) -> None:
    pixels = images.validation.pixels[:4]
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(one).eval()(pixels), copy.deepcopy(other).eval()(pixels))


@each_family
@settings(max_examples=15)
@given(data=st.data())
def test_inactive_hyperparameters_change_nothing(family: type[Architecture], data: st.DataObject) -> None:
    architecture = data.draw(architectures(family, MAX_WIDTH))
    specs = hyperparameters(family)
    values = {name: getattr(architecture, name) for name in specs}
    inactive = {
        name: data.draw(hyperparameter_values(spec, MAX_WIDTH))
        for name, spec in specs.items()
        if not family.is_active(name, values)
    }
    other = family(**values | inactive)
    assert str(other.build_network(NUM_CLASSES)) == str(architecture.build_network(NUM_CLASSES))
    assert other.widths == architecture.widths


# ------------------------------------------------------------------------------------------ export


class ProbabilityModule(nn.Module):
    """A classifier that returns probabilities, as registered models do."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(pixels).softmax(1)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=name, marks=() if name in ("mlp", "simple_cnn") else pytest.mark.slow)
        for name, family in FAMILIES.items()
    ],
)
@settings(max_examples=2)
@given(data=st.data())
def test_it_exports_for_batches_of_any_size(family: type[Architecture], images: Images, data: st.DataObject) -> None:
    model = build_seeded(data.draw(st.just(family()) | architectures(family, MAX_WIDTH)), images)
    loss_of(model, images, 32).backward()
    model_to_export = ProbabilityModule(copy.deepcopy(model).cpu().eval())
    example = (images.train.pixels[:2].float(),)
    exported = torch.export.export(model_to_export, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    for count in (1, 2, 3, 50):
        pixels = images.validation.pixels[:count].float()
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(pixels), model_to_export(pixels), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------ the registry


def test_a_hyperparameter_has_the_same_type_in_every_family() -> None:
    # MLflow shows them in one column. A family without the hyperparameter logs 0 where others have a number.
    types: dict[str, set[type]] = {}
    for family in FAMILIES.values():
        for name, spec in hyperparameters(family).items():
            types.setdefault(name, set()).add(spec.kind)
    assert {name: several for name, several in types.items() if len(several) > 1} == {}


@each_family
def test_a_network_that_is_too_large_is_refused_before_it_is_built(family: type[Architecture]) -> None:
    largest = family()
    for name, spec in hyperparameters(family).items():
        if spec.kind is int and spec.high is not None:
            larger = dataclasses.replace(largest, **{name.removeprefix(family.prefix): int(spec.high)})
            # With some of the highest values there is no network, for example if pooling leaves nothing of the image.
            with contextlib.suppress(UserError):
                largest = max(largest, larger, key=count_parameters)
    if count_parameters(largest) > MAX_PARAMETERS:
        with pytest.raises(UserError, match=rf"{MAX_PARAMETERS:,}"):
            build(largest)
