"""An MLflow store with an empty registry, and a model name for each test."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from fmnist_search.tracking.connection import connect


@pytest.fixture(scope="package")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    """Client of a store that all these tests share."""
    return connect(f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """The name of a registered model that no other test uses."""
    return f"{request.module.__name__} {request.node.name}".replace(":", " ").replace("/", " ")
