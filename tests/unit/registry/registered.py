"""Registers versions without any model behind them, for tests of the registry."""

from __future__ import annotations

import os
import socket
import statistics

from mlflow import MlflowClient

from fmnist_search.registry.aliases import decide_alias
from fmnist_search.registry.register import UNDECIDED_NOTE, register_version

IMAGE_COUNT = 10_848
MISSING_MODEL_URI = "s3://nowhere/model"
MISSING_RUN_ID = "0" * 32
DEAD_PROCESS = f"{socket.gethostname()} {os.getpid()} 5"
"""A process of this machine that has ended: none with this id has started at that time."""


def version_tags(*accuracies: float, **changes: str) -> dict[str, str]:
    """Return the tags of a version with these confirmed accuracies."""
    return {
        "dataset_digest": "d",
        "split_digest": "s",
        "confirmed_mean": str(statistics.fmean(accuracies)),
        "confirmed_deviation": str(statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0),
        "confirmed_seeds": str(len(accuracies)),
        "validation_images": str(IMAGE_COUNT),
        **changes,
    }


def create_version(client: MlflowClient, name: str, *accuracies: float, **changes: str) -> str:
    """Register a version that is still undecided, and return its number."""
    tags = version_tags(*accuracies, **changes)
    return register_version(client, name, MISSING_MODEL_URI, MISSING_RUN_ID, tags, f"A card. {UNDECIDED_NOTE}")


def promote_version(client: MlflowClient, name: str, *accuracies: float, **changes: str) -> tuple[str, str]:
    """Register a version and decide about it; return its number and the alias that it gets."""
    version = create_version(client, name, *accuracies, **changes)
    return version, decide_alias(client, name, version).alias
