"""Databases that are cut or overwritten at random: one line that names the file, and never a wrong result."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.integration.conftest import FinishedStudy

READING = [["leaderboard", "--json"], ["studies", "list", "--json"], ["show", "0"]]
DAMAGES = 5


def damage(content: bytes, chance: random.Random) -> bytes:
    """Return the content of a file, cut somewhere or with a part that was overwritten."""
    damaged, at = bytearray(content), chance.randrange(len(content))
    if chance.random() < 0.3:
        return bytes(damaged[:at])
    size = min(chance.choice([512, 4096, 8192]), len(content) - at)
    damaged[at : at + size] = bytes(size) if chance.random() < 0.3 else chance.randbytes(size)
    return bytes(damaged)


@pytest.mark.parametrize("name", ["fmnist-search/optuna.db", "mlflow.db"])
def test_a_damaged_database_is_an_error_or_gives_the_right_results(finished: FinishedStudy, name: str) -> None:
    path, chance = finished.folder / name, random.Random(14)
    whole, expected = path.read_bytes(), [finished.run(*words) for words in READING]
    assert [outcome.exit_code for outcome in expected] == [0, 0, 0]
    refused = 0
    for _ in range(DAMAGES):
        path.write_bytes(damage(whole, chance))
        for words, right in zip(READING, expected, strict=True):
            outcome = finished.run(*words)
            if outcome.exit_code == 0:
                assert outcome.stdout == right.stdout
                continue
            refused += 1
            (line,) = outcome.errors
            assert "unexpected" not in line
            assert "Traceback" not in outcome.stderr
            assert str(path) in line or "trial " in line or "study " in line
    _restore(path, whole)
    assert refused or name == "mlflow.db"
    assert [finished.run(*words).stdout for words in READING] == [right.stdout for right in expected]


def _restore(path: Path, content: bytes) -> None:
    for log in path.parent.glob(f"{path.name}-*"):
        log.unlink()
    path.write_bytes(content)
