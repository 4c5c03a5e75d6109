"""The seeded, stratified split into training and validation images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fmnist_search.recipe.groups import Data


def split(labels: npt.NDArray[np.int64], data: Data) -> tuple[Tensor, Tensor]:
    """Return the indices of the training images and of the validation images, each int64 and ascending.

    The validation images are a stratified sample of all images, a subset of the training images is one of the others.
    Both depend only on the labels, the counts and the seed, so they are the same in every trial of a study.
    """
    everything = np.arange(len(labels))
    validation = stratified_sample(labels, everything, data.validation, np.random.default_rng([data.seed, 0]))
    training = np.setdiff1d(everything, validation, assume_unique=True)
    if data.train_images:
        training = stratified_sample(labels, training, data.train_images, np.random.default_rng([data.seed, 1]))
    return torch.from_numpy(training), torch.from_numpy(validation)


def stratified_sample(
    labels: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    count: int,
    generator: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Return `count` of the candidate indices, ascending, with each class in proportion to its size.

    The quota of class c is count * n_c / N, rounded by the largest remainder method; ties go to the lower class.
    """
    sizes = np.bincount(labels[candidates])
    quotas, remainders = np.divmod(count * sizes, max(len(candidates), 1))
    neediest = np.argsort(-remainders, kind="stable")
    quotas[neediest[: count - quotas.sum()]] += 1
    chosen = [
        generator.permutation(candidates[labels[candidates] == label])[:quota] for label, quota in enumerate(quotas)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
