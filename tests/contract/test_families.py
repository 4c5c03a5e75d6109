"""What every family of networks promises. A family is under this contract from the moment it is registered."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import MAX_PARAMETERS, NUM_CLASSES, Classifier, build, count_parameters
from fmnist_search.models.cnn import Cnn
from fmnist_search.recipe.families import FAMILIES, Architecture
from fmnist_search.recipe.groups import Optimizer
from fmnist_search.recipe.hyperparameters import hyperparameters
from fmnist_search.training.evaluation import autocast
from fmnist_search.training.optim import make_optimizer
from tests.support.strategies import architectures, hyperparameter_values

MAX_WIDTH = 12
"""The largest whole number drawn for a width: enough for every shape of network, and fast."""

each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def build_seeded(architecture: Architecture, images: Images, seed: int = 0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(architecture, images.mean, images.std)


def loss_of(model: Classifier, images: Images, count: int) -> Tensor:
    return functional.cross_entropy(model(images.train.pixels[:count]), images.train.labels[:count])


# ------------------------------------------------------------------------------------------ shape


@each_family
@settings(max_examples=15)
@given(data=st.data())
def test_one_image_or_many_become_finite_logits(
    family: type[Architecture], images: Images, data: st.DataObject
) -> None:
    model = build_seeded(data.draw(architectures(family, MAX_WIDTH)), images).eval()
    with torch.no_grad():
        many, one = model(images.train.pixels[:5]), model(images.train.pixels[:1])
    assert (many.shape, one.shape, many.dtype) == ((5, NUM_CLASSES), (1, NUM_CLASSES), torch.float32)
    assert many.isfinite().all()
    # No image's logits depend on the company it is in.
    torch.testing.assert_close(one, many[:1], rtol=1e-4, atol=1e-4)


@each_family
def test_pixels_of_any_type_give_the_same_logits(family: type[Architecture], images: Images) -> None:
    model = build_seeded(family(), images).eval()
    pixels = images.train.pixels[:4]
    assert torch.equal(model(pixels.float()), model(pixels))
    assert torch.equal(model(pixels.long()), model(pixels))


@each_family
def test_the_network_sees_normalised_images(family: type[Architecture], images: Images) -> None:
    model = build_seeded(family(), images).eval()
    pixels = images.train.pixels[:4]
    normalised = ((pixels.float() - images.mean) / images.std).unsqueeze(1)
    torch.testing.assert_close(model(pixels), model.network(normalised))


@each_family
@settings(max_examples=15)
@given(data=st.data())
def test_bfloat16_gives_finite_logits_and_gradients(
    family: type[Architecture], images: Images, data: st.DataObject
) -> None:
    model = build_seeded(data.draw(architectures(family, MAX_WIDTH)), images)
    with autocast(torch.device("cpu"), "bfloat16"):
        logits = model(images.train.pixels[:8])
    functional.cross_entropy(logits.float(), images.train.labels[:8]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------------------------- parameters


@each_family
@settings(max_examples=25)
@given(data=st.data())
def test_parameters_are_counted_without_building(
    family: type[Architecture], images: Images, data: st.DataObject
) -> None:
    architecture = data.draw(architectures(family, MAX_WIDTH))
    assert count_parameters(architecture) == sum(p.numel() for p in build_seeded(architecture, images).parameters())


def test_the_default_cnn_has_the_parameters_that_pencil_and_paper_give() -> None:
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 128)
    norms = 2 * (32 + 64 + 128)
    head = 128 * 10 + 10
    assert count_parameters(Cnn()) == convolutions + norms + head == 94_186


@each_family
@settings(max_examples=15)
@given(data=st.data())
def test_a_gradient_reaches_every_parameter(family: type[Architecture], images: Images, data: st.DataObject) -> None:
    model = build_seeded(data.draw(architectures(family, MAX_WIDTH)), images)
    loss_of(model, images, 16).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@each_family
def test_by_default_no_gradient_is_all_zero(family: type[Architecture], images: Images) -> None:
    model = build_seeded(family(), images)
    loss_of(model, images, 64).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


SMALLER_DEFAULTS: dict[str, dict[str, int]] = {"vgg": {"width": 8}, "resnet": {"blocks": 1}}
"""Families whose default network takes its time."""


@each_family
def test_it_can_learn_64_images_by_heart(family: type[Architecture], images: Images) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(family(**SMALLER_DEFAULTS.get(family.family, {})), images.mean, images.std)
        optimizer = make_optimizer(model, Optimizer(learning_rate=5e-3, weight_decay=0.0))
        for step in itertools.count():
            assert step < 80, "still wrong about some of 64 images"
            optimizer.zero_grad()
            loss_of(model, images, 64).backward()
            optimizer.step()
            if step % 10 == 9:
                guesses = copy.deepcopy(model).eval()(images.train.pixels[:64]).argmax(1)
                if torch.equal(guesses, images.train.labels[:64]):
                    break


# ----------------------------------------------------------------------------------------- values


@each_family
@settings(max_examples=10)
@given(data=st.data())
def test_the_seed_decides_the_initial_weights(family: type[Architecture], images: Images, data: st.DataObject) -> None:
    architecture = data.draw(architectures(family, MAX_WIDTH))
    once, again, other = (build_seeded(architecture, images, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    assert any(not torch.equal(value, other[name]) for name, value in once.items())


@each_family
@settings(max_examples=10)
@given(data=st.data())
def test_weights_survive_a_file(family: type[Architecture], images: Images, data: st.DataObject) -> None:
    architecture = data.draw(architectures(family, MAX_WIDTH))
    model = build_seeded(architecture, images)
    loss_of(model, images, 8).backward()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = build(architecture)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert_same_network(again, model, images)


@each_family
@settings(max_examples=10)
@given(data=st.data())
def test_weights_load_from_a_plain_dictionary_too(
    family: type[Architecture], images: Images, data: st.DataObject
) -> None:
    # Formats without pickles know names and tensors, and nothing of what torch hides beside them.
    architecture = data.draw(architectures(family, MAX_WIDTH))
    model = build_seeded(architecture, images)
    loss_of(model, images, 8).backward()
    again = build(architecture)
    again.load_state_dict(dict(model.state_dict()))
    assert_same_network(again, model, images)


def assert_same_network(one: Classifier, other: Classifier, images: Images) -> None:
    pixels = images.validation.pixels[:4]
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(one).eval()(pixels), copy.deepcopy(other).eval()(pixels))


@each_family
@settings(max_examples=30)
@given(data=st.data())
def test_what_is_not_in_use_changes_nothing(family: type[Architecture], data: st.DataObject) -> None:
    architecture = data.draw(architectures(family, MAX_WIDTH))
    specs = hyperparameters(family)
    values = {name: getattr(architecture, name) for name in specs}
    idle = {
        name: data.draw(hyperparameter_values(spec, MAX_WIDTH))
        for name, spec in specs.items()
        if not family.is_active(name, values)
    }
    other = family(**values | idle)
    assert str(other.build_network(NUM_CLASSES)) == str(architecture.build_network(NUM_CLASSES))
    assert other.widths == architecture.widths


# ------------------------------------------------------------------------------------------ export


class ProbabilityModule(nn.Module):
    """What leaves the house: a classifier that answers with probabilities."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(pixels).softmax(1)


@each_family
@settings(max_examples=3)
@given(data=st.data())
def test_it_exports_for_batches_of_any_size(family: type[Architecture], images: Images, data: st.DataObject) -> None:
    model = build_seeded(data.draw(st.just(family()) | architectures(family, MAX_WIDTH)), images)
    loss_of(model, images, 32).backward()
    leaving = ProbabilityModule(copy.deepcopy(model).cpu().eval())
    example = (images.train.pixels[:2].float(),)
    exported = torch.export.export(leaving, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    for count in (1, 2, 3, 50):
        pixels = images.validation.pixels[:count].float()
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(pixels), leaving(pixels), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------- the list


def test_one_name_is_of_one_type_in_every_family() -> None:
    # What a family lacks is logged as 0 where others have a number: then a column of MLflow holds numbers alone.
    kinds: dict[str, set[type]] = {}
    for family in FAMILIES.values():
        for name, spec in hyperparameters(family).items():
            kinds.setdefault(name, set()).add(spec.kind)
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}


@each_family
def test_a_network_that_is_too_large_is_refused_unbuilt(family: type[Architecture]) -> None:
    giant = family()
    for name, spec in hyperparameters(family).items():
        if spec.kind is int and spec.high is not None:
            larger = dataclasses.replace(giant, **{name.removeprefix(family.prefix): int(spec.high)})
            # Not every high value makes a network larger, or one at all: pooling takes the image away.
            with contextlib.suppress(UserError):
                giant = max(giant, larger, key=count_parameters)
    if count_parameters(giant) > MAX_PARAMETERS:
        with pytest.raises(UserError, match=rf"{MAX_PARAMETERS:,}"):
            build(giant)
