"""Weights are read from the file of an exported model as plain numbers, and a file that is no such file is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmnist_search.registry.rebuilding import WEIGHTS_CONFIG, WEIGHTS_FOLDER, read_weights

VALUES = np.arange(6, dtype=np.float32)


def entry(**changes: Any) -> dict[str, Any]:
    """Return the description of a matrix of 2 by 3 numbers, as torch writes it."""
    sizes = {"sizes": [{"as_int": 2}, {"as_int": 3}], "strides": [{"as_int": 3}, {"as_int": 1}]}
    tensor_meta = {"dtype": 7, **sizes, "storage_offset": {"as_int": 0}, **changes}
    return {"path_name": "weight_0", "use_pickle": False, "tensor_meta": tensor_meta}


def write_weights(path: Path, described: dict[str, Any], *, description_bytes: int = 0, record_bytes: int = 0) -> None:
    """Write a file with one weight. The numbers of bytes, if given, are those that the file claims to have."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(WEIGHTS_CONFIG, json.dumps({"config": {"layer.weight": described}}))
        archive.writestr(f"{WEIGHTS_FOLDER}/weight_0", VALUES.tobytes())
        for name, claimed in ((WEIGHTS_CONFIG, description_bytes), (f"{WEIGHTS_FOLDER}/weight_0", record_bytes)):
            if claimed:
                archive.getinfo(name).file_size = claimed


def test_weights_are_read_with_their_sizes(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.pt2", entry())
    weights = read_weights(tmp_path / "model.pt2")
    assert weights.keys() == {"layer.weight"}
    np.testing.assert_array_equal(weights["layer.weight"], VALUES.reshape(2, 3))


@pytest.mark.parametrize(
    ("changes", "claimed", "message"),
    [
        ({}, {"description_bytes": 10**8}, "description of the weights is too large"),
        ({}, {"record_bytes": 10**10}, "larger than those of any model"),
        ({"sizes": [{"as_int": 10**6}] * 2, "strides": [{"as_int": 0}] * 2}, {}, "larger than its record"),
        ({"dtype": 1}, {}, "not a plain tensor"),
    ],
    ids=["description", "weights", "strides of 0", "type"],
)
def test_weights_that_would_fill_the_memory_or_are_no_numbers_are_refused(
    tmp_path: Path, changes: dict[str, Any], claimed: dict[str, int], message: str
) -> None:
    write_weights(tmp_path / "model.pt2", entry(**changes), **claimed)
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "model.pt2")
