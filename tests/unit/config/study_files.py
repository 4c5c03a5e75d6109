"""Parts of study files that several test modules put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError

ROOT = Path(__file__).parents[3]

HEADER = 'name = "t"\n[budget]\ntrials = 4\n'
CNN_SPACE = "[space.cnn]\ndepth = [1, 2]\n"
COMMON_HEADER = f"{HEADER}[space.common]\n"
FEW_IMAGES = f"{HEADER}[data]\ntrain_images = 100\n"

TWO_FAMILIES = f"""{COMMON_HEADER}
family = ["cnn", "mlp"]
batch_size = [64, 128]
optimizer.learning_rate = {{ low = 1e-3, high = 1e-1, log = true }}
[space.cnn]
depth = [1, 2]
kernel_1 = [3, 5]
[space.mlp]
depth = [1, 2, 3]
width = [64, 128]
"""


def load_study(folder: Path, text: str, overrides: dict[str, object] | None = None) -> StudyConfig:
    """Write a study file and load it."""
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return StudyConfig.load(path, overrides)


def error_lines(folder: Path, text: str, overrides: dict[str, object] | None = None) -> list[str]:
    """Return the lines of the error of a study file, without the name of the file with which each must start."""
    with pytest.raises(UserError) as caught:
        load_study(folder, text, overrides)
    prefix = f"{folder / 'study.toml'}: "
    assert caught.value.exit_code == 2
    for line in caught.value.lines:
        assert line.startswith(prefix)
        assert "\n" not in line
    return [line.removeprefix(prefix) for line in caught.value.lines]
