"""The datasets: grey images of 28 by 28 pixels in ten classes, 60,000 for training and validation, 10,000 for tests.

All differences between the datasets are in this table: to add a dataset, add an entry. A user's own datasets, which may
be smaller and have other numbers of classes, are found by their names when they are asked for.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from fmnist_search.errors import UserError, did_you_mean

NUM_CLASSES = 10
"""Classes of the datasets of this program."""

MAX_CLASSES = 100
"""Most classes of a user's own dataset: more make confusion matrices unreadable."""

IMAGE_SIZE = 28
"""Width and height of every image, in pixels."""

TRAINING_SET_SIZE = 60_000
"""Images that each dataset has for training and validation together."""

TEST_SET_SIZE = 10_000
"""Images that each dataset has for tests."""

FILE_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""Images and labels for training, images and labels for testing; the names are part of the format."""


@dataclass(frozen=True)
class Dataset:
    """The facts about one dataset. Its images show `subject`, light on a dark background.

    `digests` holds the SHA-256 of each uncompressed file by name or, if the dataset is `compressed`, of the published
    `.gz` file. `download_url` is the folder of the published files, for messages that tell the user where to get them.
    `torchvision_class` names the class of torchvision that downloads the files; without one, the user fetches them. A
    user's own dataset has no `download_url`.
    """

    name: str
    title: str
    subject: str
    classes: tuple[str, ...]
    licence: str
    download_url: str
    digests: Mapping[str, str]
    torchvision_class: str = ""
    compressed: bool = False
    system_package: str = ""
    training_images: int = TRAINING_SET_SIZE
    test_images: int = TEST_SET_SIZE

    @property
    def digest(self) -> str:
        """SHA-256 of the four digests, which identifies the dataset."""
        return hashlib.sha256("".join(self.digests[name] for name in FILE_NAMES).encode()).hexdigest()


def _digests(*sums: str) -> dict[str, str]:
    return dict(zip(FILE_NAMES, sums, strict=True))


FASHION_MNIST = Dataset(
    name="fashion-mnist",
    title="Fashion-MNIST",
    subject="clothes",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    licence="© 2017 Zalando SE, MIT licence",
    torchvision_class="FashionMNIST",
    download_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    digests=_digests(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    system_package="dataset-fashion-mnist",
)

MNIST = Dataset(
    name="mnist",
    title="MNIST",
    subject="handwritten digits",
    classes=tuple("0123456789"),
    licence="© Yann LeCun and Corinna Cortes, CC BY-SA 3.0",
    torchvision_class="MNIST",
    # The copy that torchvision tries first; the authors' own page is http://yann.lecun.com/exdb/mnist/.
    download_url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    digests=_digests(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

KMNIST = Dataset(
    name="kmnist",
    title="Kuzushiji-MNIST",
    subject="cursive Japanese characters",
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    licence="the KMNIST Dataset (created by CODH), adapted from the Kuzushiji Dataset (created by NIJL and others), "
    "doi:10.20676/00000341, CC BY-SA 4.0",
    torchvision_class="KMNIST",
    download_url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
    digests=_digests(
        "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
        "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
    ),
    compressed=True,  # other projects publish the sums of the .gz files only
)


class DatasetTable(dict[str, Dataset]):
    """The datasets by name: those of this program, and those of the user's own that were asked for."""

    def __contains__(self, name: object) -> bool:
        """Return whether there is a dataset of that name, also one of the user's own."""
        return dict.__contains__(self, name) or (isinstance(name, str) and self._find(name) is not None)

    def __missing__(self, name: str) -> Dataset:
        """Return a dataset of the user's own."""
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return found

    def _find(self, name: str) -> Dataset | None:
        # By name, because `data` is in a higher layer.
        found: Dataset | None = importlib.import_module("fmnist_search.data.own_datasets").find_dataset(name)
        if found:
            self[name] = found
        return found


DATASETS = DatasetTable({dataset.name: dataset for dataset in (FASHION_MNIST, MNIST, KMNIST)})
DEFAULT_DATASET = FASHION_MNIST.name
"""The dataset of recipes that name none, and of models registered before there was a choice."""


def get_dataset(name: str) -> Dataset:
    """Return the dataset of that name.

    Raises:
        UserError: if there is none; the message suggests the nearest name.
    """
    if name not in DATASETS:
        raise UserError(f"dataset {name!r}: is not known; {did_you_mean(name, DATASETS)}")
    return DATASETS[name]


def dataset_with_digest(digest: str) -> Dataset | None:
    """Return the dataset that has this digest, or a file with this digest; None if there is none."""
    return next((known for known in DATASETS.values() if digest in (known.digest, *known.digests.values())), None)
