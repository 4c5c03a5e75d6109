"""Where trials run: the backend and the cluster that a study file or the command line names."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fmnist_search.config.comparability import search_settings
from fmnist_search.config.execution import RayResourcesSection, RaySection, parse_memory
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from tests.unit.config.study_files import CNN_SPACE, HEADER, load_study

RAY_STUDY = f"""{HEADER}{CNN_SPACE}
[execution]
backend = "ray"
[execution.ray]
address = "[fd00::1]:6379"
resources = {{ cpu = 2, gpu = 0.25, memory = "4GiB" }}
streams = 4
labels = {{ "ray.io/accelerator-type" = "H100" }}
"""


def test_a_study_names_a_cluster_and_what_its_workers_have(tmp_path: Path) -> None:
    config = load_study(tmp_path, RAY_STUDY)
    assert config.execution.ray == RaySection(
        address="[fd00::1]:6379",
        resources=RayResourcesSection(cpu=2, gpu=0.25, memory="4GiB"),
        streams=4,
        labels={"ray.io/accelerator-type": "H100"},
    )
    assert StudyConfig.from_dict(tomllib.loads(config.to_toml())) == config


def test_the_command_line_chooses_a_cluster_for_a_study_that_names_none(tmp_path: Path) -> None:
    text = f"{HEADER}{CNN_SPACE}"
    assert load_study(tmp_path, text).execution.ray is None
    assert load_study(tmp_path, text, {"execution.backend": "ray"}).execution.ray == RaySection()
    overrides: dict[str, object] = {"execution.backend": "ray", "execution.ray.resources.memory": 0}
    ray = load_study(tmp_path, text, overrides).execution.ray
    assert ray is not None
    assert ray.resources == RayResourcesSection(memory=0)


def test_a_stored_study_goes_on_with_another_backend(tmp_path: Path) -> None:
    config = load_study(tmp_path, RAY_STUDY)
    assert config.with_backend("processes").execution.ray == config.execution.ray
    assert config.with_backend("processes").comparability_key() == config.comparability_key()
    with pytest.raises(UserError, match="no backend 'slurm'"):
        config.with_backend("slurm")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * 2**30), ("1.5 GB", 1_500_000_000), ("512 MiB", 2**29), ("10KB", 10_000), ("7B", 7), (0, 0), (9, 9)],
)
def test_memory_is_read_as_text_and_as_bytes(text: str | int, size: int) -> None:
    assert parse_memory(text) == size


def test_the_settings_of_a_search_name_those_of_its_cluster(tmp_path: Path) -> None:
    settings = search_settings(load_study(tmp_path, RAY_STUDY))
    assert settings["execution.ray.resources.gpu"] == "0.25"
    assert settings["execution.ray.labels.ray.io/accelerator-type"] == "H100"
