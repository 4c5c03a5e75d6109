"""The training loop of tutorials, for the networks that our engine trains.

torchvision's dataset with `ToTensor`, a DataLoader, float32, eager mode, `.item()` after each batch, Adam; convolution,
BatchNorm and ReLU before the pooling. It is as tutorials write it, and not slowed down.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks.machine import device_slug
from benchmarks.measure import BenchmarkResult, Measurement, make_parser, report_result, run_main
from benchmarks.ours import data_source
from fmnist_search.data.files import DataSource, read_verified_file
from fmnist_search.data.split import split
from fmnist_search.errors import UserError
from fmnist_search.models.cnn import STEM_FACTORS, Cnn
from fmnist_search.models.mlp import NUM_PIXELS, Mlp
from fmnist_search.recipe.datasets import DATASETS, IMAGE_SIZE, NUM_CLASSES
from fmnist_search.recipe.families import Architecture
from fmnist_search.recipe.groups import Augmentation, Data
from fmnist_search.recipe.recipe import Recipe

VALIDATION_BATCH_SIZE = 1_000

BatchLoader = DataLoader[Any]


# ------------------------------------------------------------------------------------ the network


def build_network(model: Architecture) -> nn.Sequential:
    """Return the network of a recipe as tutorials write it: with BatchNorm, ReLU and max pooling, the same function.

    Raises:
        UserError: if the recipe has something else.
    """
    match model:
        case Cnn(norm="batch", activation="relu", pool="max", dropout=0, hidden=0):
            return _build_cnn(model)
        case Mlp(activation="relu", dropout=0):
            return _build_mlp(model)
    raise UserError(f"model: the tutorial has no such {model.family}; keep norm, activation, pool, dropout and hidden")


def _build_cnn(model: Cnn) -> nn.Sequential:
    factor = STEM_FACTORS[model.stem]
    layers: list[nn.Module] = [nn.PixelUnshuffle(factor)]
    channels = factor**2
    for block, (width, kernel) in enumerate(zip(model.widths, model.kernels, strict=True), start=1):
        for _ in range(model.convolutions):
            layers.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        if block < model.depth:
            layers.append(nn.MaxPool2d(model.pool_size))
    side = IMAGE_SIZE // (factor * model.pool_size ** (model.depth - 1)) if model.head == "flatten" else 1
    average = [] if model.head == "flatten" else [nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, *average, nn.Flatten(), nn.Linear(channels * side**2, NUM_CLASSES))


def _build_mlp(model: Mlp) -> nn.Sequential:
    sizes = (NUM_PIXELS, *model.widths)
    hidden = [[nn.Linear(inputs, units), nn.ReLU()] for inputs, units in itertools.pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *itertools.chain(*hidden), nn.Linear(sizes[-1], NUM_CLASSES))


# ------------------------------------------------------------------------------------- the images


@contextlib.contextmanager
def torchvision_folder(source: DataSource) -> Iterator[Path]:
    """Yield a temporary folder in which torchvision finds the images without a download."""
    dataset = DATASETS["fashion-mnist"]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / dataset.torchvision_class / "raw"
        raw.mkdir(parents=True)
        for name in dataset.digests:
            (raw / name).write_bytes(read_verified_file(dataset, name, source))
        yield Path(folder)


def training_set(folder: Path, data: Data, augmentation: Augmentation | None = None) -> Subset[Any]:
    """Return the images that a recipe trains on, the same as ours."""
    dataset = datasets.FashionMNIST(folder, train=True, transform=_transform(augmentation or Augmentation()))
    return Subset(dataset, split(dataset.targets.numpy(), data)[0].tolist())


def validation_set(folder: Path, data: Data) -> Subset[Any]:
    """Return the validation images of a recipe, the same as ours."""
    dataset = datasets.FashionMNIST(folder, train=True, transform=transforms.ToTensor())
    return Subset(dataset, split(dataset.targets.numpy(), data)[1].tolist())


def test_set(folder: Path) -> datasets.FashionMNIST:
    """Return the 10,000 test images."""
    return datasets.FashionMNIST(folder, train=False, transform=transforms.ToTensor())


def make_loader(dataset: Any, batch_size: int, workers: int, device: str, shuffle: bool = False) -> BatchLoader:
    """Return a DataLoader with persistent workers, so that short epochs do not include their start."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.startswith("cuda"),
    )


def _transform(augmentation: Augmentation) -> transforms.Compose:
    steps: list[Any] = []
    if augmentation.shift:
        steps.append(transforms.RandomCrop(28, padding=augmentation.shift))
    if augmentation.flip:
        steps.append(transforms.RandomHorizontalFlip(augmentation.flip))
    steps.append(transforms.ToTensor())
    if augmentation.erasing:
        steps.append(transforms.RandomErasing(augmentation.erasing))
    return transforms.Compose(steps)


# --------------------------------------------------------------------------------------- the loop


def train_epoch(model: nn.Module, loader: BatchLoader, optimizer: torch.optim.Optimizer, device: str) -> float:
    """Train for one epoch and return the mean of the batches' losses."""
    criterion = nn.CrossEntropyLoss()
    running_loss = 0.0
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return running_loss / len(loader)


def validate(model: nn.Module, loader: BatchLoader, device: str) -> float:
    """Return the accuracy of the model on these images."""
    correct = total = 0
    model.eval()
    with torch.no_grad():
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            correct += (model(images).argmax(dim=1) == labels).sum().item()
            total += len(labels)
    return correct / total


# ------------------------------------------------------------------------------------ the command


def main() -> None:
    """Measure the images per second of the tutorial's training and validation."""
    parser = make_parser(main.__doc__)
    parser.add_argument("--epochs", type=int, default=2, help="measured epochs, after one warm-up epoch")
    parser.add_argument("--images", type=int, default=12_000, help="training images")
    parser.add_argument("--validation", type=int, default=10_848, help="validation images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0, help="num_workers of the DataLoader")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    data = Data(train_images=arguments.images, validation=arguments.validation)
    recipe = Recipe(data=data, batch_size=arguments.batch_size)
    with torchvision_folder(data_source(arguments.data_dir)) as folder:
        model = build_network(recipe.model).to(arguments.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        workers, device = arguments.workers, arguments.device
        training = make_loader(training_set(folder, data), recipe.batch_size, workers, device, shuffle=True)
        validation = make_loader(validation_set(folder, data), VALIDATION_BATCH_SIZE, workers, device)
        marks = []
        for _ in range(arguments.epochs + 1):
            started = time.perf_counter()
            train_epoch(model, training, optimizer, arguments.device)
            trained = time.perf_counter()
            accuracy = validate(model, validation, arguments.device)
            marks.append((arguments.images / (trained - started), data.validation / (time.perf_counter() - trained)))
    trained_a_second, validated_a_second = zip(*marks[1:], strict=True)
    figures = (
        Measurement(f"training, {recipe.label}, batch size {recipe.batch_size}", "images/s", theirs=trained_a_second),
        Measurement(f"validation, {recipe.label}", "images/s", theirs=validated_a_second),
    )
    settings = {"threads": torch.get_num_threads(), "workers": arguments.workers, "images": arguments.images}
    remark = f"validation accuracy {accuracy:.2%} after {arguments.epochs + 1} epochs"
    result = BenchmarkResult("tutorial", "tutorial", figures, settings, device_slug(arguments.device), (remark,))
    report_result(result, arguments)


if __name__ == "__main__":
    run_main(main)
