"""What every preset promises: its author's network to the last parameter, its recipe as a file, a way to train it."""

from __future__ import annotations

import copy
import io
import itertools
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given
from torch.nn import functional

from fmnist_search.config.toml_files import read_recipe, recipe_from_toml, recipe_to_toml
from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import NUM_CLASSES, build, check_size, count_parameters
from fmnist_search.models.convnet import ConvNet
from fmnist_search.models.initialization import INITIALIZERS, load_pretrained_weights, set_initial_weights
from fmnist_search.models.presets import PRESETS, Preset, get_preset
from fmnist_search.models.resnet import ResNet
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.groups import Optimizer
from fmnist_search.recipe.recipe import INITIAL_WEIGHTS, Recipe
from fmnist_search.reporting.model_summary import summarize
from fmnist_search.training.optim import make_optimizer
from fmnist_search.training.state import initial_classifier
from tests.support.strategies import recipes

RECIPES_FOLDER = Path(__file__).parents[2] / "studies" / "recipes"
LARGE_PARAMETER_COUNT = 1_000_000
TORCHVISION_PREFIXES = ("conv1.", "fc.")

# What the authors themselves say, and what their descriptions come to: literals, so that no code checks itself.
# Convolutions before a normalisation need no bias; "about 1 M" is all that its author says.
VGG_PARAMETER_COUNT = 9 * (64 + 64 * 64 + 64 * 128 + 128**2 + 128 * 256 + 256**2) + 2 * 2 * (64 + 128 + 256) + 257 * 10
PUBLISHED_PARAMETER_COUNTS = {
    "logistic": 784 * 10 + 10,
    "mlp-512": 669_706,
    "mlp-256": (784 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 10,
    "mlp-pyramid": 242_762,
    "simple-cnn": 1_941,
    "conv-dropout": 206_922,
    "convnet": (9 * 1 + 1) * 32 + (9 * 32 + 1) * 64 + (64 * 5**2 + 1) * 128 + (128 + 1) * 10,
    "lenet": (25 + 1) * 16 + (25 * 16 + 1) * 32 + (25 * 32 + 1) * 64 + (64 * 9 + 1) * 128 + 129 * 64 + 65 * 10,
    "tiny-conv": 39_358,
    "wide-conv": 25_993_898,
    "wide-conv-bn": 25_994_986,
    "vgg": VGG_PARAMETER_COUNT,
    "vgg-augmented": VGG_PARAMETER_COUNT,
    "resnet18": 11_175_370,
}

each_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
each_small_preset = pytest.mark.parametrize(
    "preset",
    [
        pytest.param(
            preset, id=name, marks=[pytest.mark.slow] * (PUBLISHED_PARAMETER_COUNTS[name] >= LARGE_PARAMETER_COUNT)
        )
        for name, preset in PRESETS.items()
    ],
)


@each_preset
def test_its_recorded_counts_are_those_of_its_network_and_of_its_author(preset: Preset) -> None:
    summary = summarize(preset.recipe.model)
    assert (preset.parameters, preset.mult_adds) == (summary.parameters, summary.mult_adds)
    assert preset.parameters == count_parameters(preset.recipe.model) == PUBLISHED_PARAMETER_COUNTS[preset.name]


def test_the_presets_are_these() -> None:
    assert PRESETS.keys() == PUBLISHED_PARAMETER_COUNTS.keys()
    assert all(get_preset(name) is preset for name, preset in PRESETS.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_stands_for_its_defaults_and_a_preset_of_its_name_is_no_other(family: str) -> None:
    assert get_preset(family).recipe.model == FAMILIES[family]()


@pytest.mark.parametrize(("kernel", "side"), [(3, 5), (5, 4), (1, 7)])
def test_the_first_dense_layer_of_a_convnet_follows_the_kernel(kernel: int, side: int) -> None:
    layers = summarize(ConvNet(kernel=kernel)).layers
    dense = next(layer for layer in layers if layer.kind == "Linear")
    assert dense.parameters == (64 * side**2 + 1) * 128


# Letters for layers: a pool of the maximum stands before a ReLU, which is the same function and less work.
LAYER_ORDERS = {
    "logistic": "FL",
    "mlp-pyramid": "FLRLRLRL",
    "simple-cnn": "CMRB CMRB C FL",
    "conv-dropout": "CMR CMR F DLR DL",
    "lenet": "CMR CMR CMR F DLR DLR L",
    "tiny-conv": "CR CR F LR LR L",
    "wide-conv": "CCR CCR CCR F LR LR L",
    "wide-conv-bn": "CCBR CCBR CCBR F LBR LBR L",
    "vgg": "CBR CBMR CBR CBMR CBR CBR G L",
}


@pytest.mark.parametrize("name", LAYER_ORDERS)
def test_its_layers_stand_in_the_published_order(name: str) -> None:
    layers = "".join(layer.kind[0] for layer in summarize(PRESETS[name].recipe.model).layers)
    assert layers == LAYER_ORDERS[name].replace(" ", "")


@each_small_preset
def test_images_become_logits_and_a_gradient_reaches_every_parameter(preset: Preset, images: Images) -> None:
    model = build(preset.recipe.model, images.mean, images.std)
    with torch.no_grad():
        one = copy.deepcopy(model).eval()(images.train.pixels[:1])
    assert one.shape == (1, NUM_CLASSES)
    logits = model(images.train.pixels[:8])
    assert logits.shape == (8, NUM_CLASSES)
    functional.cross_entropy(logits, images.train.labels[:8]).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@each_small_preset
def test_the_seed_decides_its_weights(preset: Preset, images: Images) -> None:
    before = torch.get_rng_state()
    once, again, other = (
        initial_classifier(preset.recipe.replace({"seed": seed}), images).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    assert any(not torch.equal(value, other[name]) for name, value in once.items())
    assert torch.equal(torch.get_rng_state(), before)


@each_small_preset
def test_exported_it_says_the_same(preset: Preset, images: Images) -> None:
    model = build(preset.recipe.model, images.mean, images.std).eval()
    batch = torch.export.Dim("batch")
    pixels = images.validation.pixels[:7].float()
    exported = torch.export.export(model, (pixels[:2],), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(file).module()(pixels), model(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name, count in PUBLISHED_PARAMETER_COUNTS.items() if count < LARGE_PARAMETER_COUNT]
)
def test_it_can_learn_64_images_by_heart(name: str, images: Images) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(PRESETS[name].recipe.model, images.mean, images.std)
        optimizer = make_optimizer(model, Optimizer(learning_rate=5e-3, weight_decay=0.0))
        for step in itertools.count():
            assert step < 400, "still wrong about some of 64 images"
            optimizer.zero_grad()
            functional.cross_entropy(model(images.train.pixels[:64]), images.train.labels[:64]).backward()
            optimizer.step()
            if step % 10 == 9:
                guesses = copy.deepcopy(model).eval()(images.train.pixels[:64]).argmax(1)
                if torch.equal(guesses, images.train.labels[:64]):
                    break


# ---------------------------------------------------------------------------------------- recipes


@each_preset
def test_its_recipe_file_gives_its_recipe(preset: Preset) -> None:
    assert read_recipe(RECIPES_FOLDER / f"{preset.name}.toml") == preset.recipe, "is stale: run `make docs`"


def test_every_recipe_file_is_a_preset_s() -> None:
    assert {path.stem for path in RECIPES_FOLDER.glob("*.toml")} == PRESETS.keys()


@given(recipes())
def test_a_recipe_in_brief_reads_back_equal(recipe: Recipe) -> None:
    brief = recipe_to_toml(recipe, brief=True)
    assert recipe_from_toml(brief) == recipe
    assert len(brief) <= len(recipe_to_toml(recipe))
    assert tomllib.loads(brief)["model"]["family"] == recipe.model.family


# --------------------------------------------------------------------------------- residual networks


def test_resnet18_is_torchvision_s_but_for_its_ends() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torchvision.models.resnet18(num_classes=NUM_CLASSES)
        theirs.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        ours = PRESETS["resnet18"].recipe.model.build_network(NUM_CLASSES)
        ours.load_state_dict(theirs.state_dict())
        pixels = torch.randn(3, 1, 28, 28)
    for mode in (False, True):
        torch.testing.assert_close(ours.train(mode)(pixels), theirs.train(mode)(pixels))


def test_imagenet_weights_are_loaded_into_all_but_the_first_and_last_layer() -> None:
    # The weights themselves are a download; torchvision's own network has the same names and shapes.
    state = torchvision.models.resnet18().state_dict()
    model = PRESETS["resnet18"].recipe.model
    assert isinstance(model, ResNet)
    network = model.build_network(NUM_CLASSES)
    before = copy.deepcopy(network.state_dict())
    load_pretrained_weights(network, model.pretrained_weights(lambda: state))
    for name, value in network.state_dict().items():
        expected = before if name.startswith(TORCHVISION_PREFIXES) else state
        assert torch.equal(value, expected[name]), name


def test_imagenet_weights_that_cannot_be_downloaded_are_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # A file stands where torch would make its folder, so torch fails before it opens a connection.
    (tmp_path / "hub" / "checkpoints").parent.mkdir()
    (tmp_path / "hub" / "checkpoints").write_text("")
    recipe = PRESETS["resnet18"].recipe.replace({"initial_weights": "imagenet"})
    network = recipe.model.build_network(NUM_CLASSES)
    with pytest.raises(UserError) as caught:
        set_initial_weights(network, recipe)
    (line,) = caught.value.lines
    assert line.startswith("initial_weights: the ImageNet weights cannot be downloaded")
    assert f"resnet18-f37072fd.pth into {tmp_path}" in line


@pytest.mark.parametrize("family", FAMILIES)
def test_other_networks_have_no_imagenet_weights(family: str) -> None:
    recipe = Recipe(model=FAMILIES[family](), initial_weights="imagenet")
    with pytest.raises(UserError, match=r"^initial_weights: .*resnet18") as caught:
        set_initial_weights(recipe.model.build_network(NUM_CLASSES), recipe)
    assert len(caught.value.lines) == 1


# ---------------------------------------------------------------------------------- initial weights


def test_every_scheme_has_a_name() -> None:
    assert {"default", "imagenet", *INITIALIZERS} == set(INITIAL_WEIGHTS)


@pytest.mark.parametrize("scheme", INITIALIZERS)
def test_a_scheme_draws_weights_by_the_seed_and_spares_normalisation(scheme: str, images: Images) -> None:
    recipe = Recipe(model=ConvNet(norm="batch"), initial_weights=scheme)
    usual, one, again = (
        initial_classifier(r, images).state_dict()
        for r in (recipe.replace({"initial_weights": "default"}), *[recipe] * 2)
    )
    changed = {name for name, value in one.items() if not torch.equal(value, usual[name])}
    layers = {name for name, value in usual.items() if value.ndim > 1}
    assert layers <= changed
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    for name in changed - layers:
        assert not one[name].any(), name  # a bias
    # Activations neither die nor explode on the way: 0.1 to 10 is far from both.
    model = build(recipe.model)
    model.load_state_dict(one)
    with torch.no_grad():
        assert 0.1 < model(images.train.pixels[:256]).std().item() < 10


def test_by_default_weights_are_left_as_they_are() -> None:
    recipe = Recipe(model=ResNet(blocks=1))
    network = recipe.model.build_network(NUM_CLASSES)
    before = copy.deepcopy(network.state_dict())
    drawn = torch.get_rng_state()
    set_initial_weights(network, recipe)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


# --------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ConvNet(kernel=11, depth=2), "model.kernel: a kernel of 11 leaves nothing of the image in block 2 (side 9)"),
        (ConvNet(pool_size=4, depth=3, padding="same"), "after block 3 (side 1); take model.depth = 2 or a smaller"),
        (ConvNet(kernel=11, convolutions=2, depth=1, pool_size=4), None),
    ],
)
def test_a_network_that_leaves_nothing_of_the_image_says_where(model: ConvNet, expected: str | None) -> None:
    if expected is None:
        check_size(model)
        return
    with pytest.raises(UserError) as caught:
        check_size(model)
    (line,) = caught.value.lines
    assert expected in line
