"""Presets: each has its author's number of parameters, its recorded counts and its recipe file."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given

from fmnist_search.config.toml_files import read_recipe, recipe_from_toml, recipe_to_toml
from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import build, check_size, count_parameters
from fmnist_search.models.convnet import ConvNet
from fmnist_search.models.initialization import INITIALIZERS, load_pretrained_weights, set_initial_weights
from fmnist_search.models.presets import PRESETS, Preset, get_preset
from fmnist_search.models.resnet import ResNet
from fmnist_search.recipe.datasets import NUM_CLASSES
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.recipe import INITIAL_WEIGHTS, Recipe
from fmnist_search.reporting.model_summary import summarize
from fmnist_search.training.state import initial_classifier
from tests.support.strategies import recipes

RECIPES_FOLDER = Path(__file__).parents[2] / "studies" / "recipes"
RESULTS = Path(__file__).parents[2] / "docs" / "results.md"
ANSWERED = ["baseline", "final", "lenet", "optimizers", "quick", "regularised"]
"""The studies whose champion is a recipe file."""
TORCHVISION_PREFIXES = ("conv1.", "fc.")

# The authors' own counts, or the counts that follow from their descriptions. Convolutions before a normalisation have
# no bias; the author of vgg says "about 1 M".
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


@each_preset
def test_its_recorded_counts_are_those_of_its_network_and_of_its_author(preset: Preset) -> None:
    summary = summarize(preset.recipe.model)
    assert (preset.parameters, preset.mult_adds) == (summary.parameters, summary.mult_adds)
    assert preset.parameters == count_parameters(preset.recipe.model) == PUBLISHED_PARAMETER_COUNTS[preset.name]


def test_the_presets_are_these() -> None:
    assert PRESETS.keys() == PUBLISHED_PARAMETER_COUNTS.keys()
    assert all(get_preset(name) is preset for name, preset in PRESETS.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_name_of_a_family_is_the_preset_of_its_defaults(family: str) -> None:
    assert get_preset(family).recipe.model == FAMILIES[family]()


@pytest.mark.parametrize(("kernel", "side"), [(3, 5), (5, 4), (1, 7)])
def test_the_first_dense_layer_of_a_convnet_follows_the_kernel(kernel: int, side: int) -> None:
    layers = summarize(ConvNet(kernel=kernel)).layers
    dense = next(layer for layer in layers if layer.kind == "Linear")
    assert dense.parameters == (64 * side**2 + 1) * 128


# A letter for each layer. A maximum pool comes before a ReLU, which gives the same result for less work.
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
def test_its_layers_have_the_published_order(name: str) -> None:
    layers = "".join(layer.kind[0] for layer in summarize(PRESETS[name].recipe.model).layers)
    assert layers == LAYER_ORDERS[name].replace(" ", "")


def test_the_seed_of_a_recipe_decides_its_initial_weights(images: Images) -> None:
    before = torch.get_rng_state()
    recipe = PRESETS["simple-cnn"].recipe
    once, again, other = (initial_classifier(recipe.replace({"seed": seed}), images).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    assert any(not torch.equal(value, other[name]) for name, value in once.items())
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------------- recipes


@each_preset
def test_its_recipe_file_gives_its_recipe(preset: Preset) -> None:
    assert read_recipe(RECIPES_FOLDER / f"{preset.name}.toml") == preset.recipe, "is stale: run `make docs`"


def test_every_recipe_file_belongs_to_a_preset_or_is_described_with_the_results() -> None:
    names = {path.stem for path in RECIPES_FOLDER.glob("*.toml")}
    champions = {f"champion-{path.stem}" for path in RECIPES_FOLDER.parent.glob("*.toml")} & names
    assert names - champions == {*PRESETS, "accurate"}
    assert champions == {f"champion-{study}" for study in ANSWERED}


@pytest.mark.parametrize("study", ANSWERED)
def test_the_recipe_that_a_study_found_is_the_one_of_the_results(study: str) -> None:
    recipe = read_recipe(RECIPES_FOLDER / f"champion-{study}.toml")
    (row,) = re.findall(f"^\\| \\[`{study}`\\].*", RESULTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert f" {summarize(recipe.model).parameters:,} " in row
    assert f", {recipe.epochs} epochs" in row


def test_the_accurate_recipe_is_the_one_of_the_results() -> None:
    recipe = read_recipe(RECIPES_FOLDER / "accurate.toml")
    parameters = summarize(recipe.model).parameters
    assert parameters < 1_000_000
    assert f" {parameters:,} parameters" in RESULTS.read_text(encoding="utf-8")


@given(recipes())
def test_a_brief_recipe_file_gives_an_equal_recipe(recipe: Recipe) -> None:
    brief = recipe_to_toml(recipe, brief=True)
    assert recipe_from_toml(brief) == recipe
    assert len(brief) <= len(recipe_to_toml(recipe))
    assert tomllib.loads(brief)["model"]["family"] == recipe.model.family


# --------------------------------------------------------------------------------- residual networks


def test_resnet18_equals_torchvision_except_for_the_first_and_last_layer() -> None:
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


class _WritesCanary:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "ran")


def test_imagenet_weights_are_read_without_running_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    state = {"layer1.0.conv1.weight": torch.ones(64, 64, 3, 3)}
    torch.save(state, file)
    assert ResNet(stages=4, blocks=2, width=64).pretrained_weights().keys() == state.keys()
    torch.save({"conv1.weight": _WritesCanary(tmp_path / "canary")}, file)
    with pytest.raises(UserError, match="initial_weights: the ImageNet weights cannot be downloaded or read"):
        ResNet(stages=4, blocks=2, width=64).pretrained_weights()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_other_networks_have_no_imagenet_weights(family: str) -> None:
    recipe = Recipe(model=FAMILIES[family](), initial_weights="imagenet")
    with pytest.raises(UserError, match=r"^initial_weights: .*resnet18") as caught:
        set_initial_weights(recipe.model.build_network(NUM_CLASSES), recipe)
    assert len(caught.value.lines) == 1


# ---------------------------------------------------------------------------------- initial weights


def test_every_scheme_is_a_choice_of_recipes() -> None:
    assert {"default", "imagenet", *INITIALIZERS} == set(INITIAL_WEIGHTS)


@pytest.mark.parametrize("scheme", INITIALIZERS)
def test_a_scheme_draws_weights_by_the_seed_but_not_of_normalisation(scheme: str, images: Images) -> None:
    recipe = Recipe(model=ConvNet(norm="batch"), initial_weights=scheme)
    default, one, again = (
        initial_classifier(r, images).state_dict()
        for r in (recipe.replace({"initial_weights": "default"}), *[recipe] * 2)
    )
    changed = {name for name, value in one.items() if not torch.equal(value, default[name])}
    layers = {name for name, value in default.items() if value.ndim > 1}
    assert layers <= changed
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    for name in changed - layers:
        assert not one[name].any(), name  # a bias
    # Activations neither vanish nor explode.
    model = build(recipe.model)
    model.load_state_dict(one)
    with torch.no_grad():
        assert 0.1 < model(images.train.pixels[:256]).std().item() < 10


def test_by_default_weights_do_not_change() -> None:
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
def test_the_error_where_nothing_of_the_image_is_left_names_the_block(model: ConvNet, expected: str | None) -> None:
    if expected is None:
        check_size(model)
        return
    with pytest.raises(UserError) as caught:
        check_size(model)
    (line,) = caught.value.lines
    assert expected in line
