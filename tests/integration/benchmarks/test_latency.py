"""The benchmark of latency: whole commands of any checkout, and how the modules of a package import each other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import import_graph, latency
from benchmarks.latency_commands import COMPARISONS
from benchmarks.measure import BenchmarkResult

MINI = """
name = "mini"
question = "Does it run?"
[data]
train_images = 300
validation = 300
[budget]
trials = 2
epochs = 1
[space.common]
batch_size = [100]
optimizer.learning_rate = { low = 3e-3, high = 3e-2, log = true }
[space.cnn]
depth = [1, 2]
width_1 = [4, 8]
"""
STRUCTURE = {
    "import levels, packages",
    "import levels, modules",
    "import circles, packages",
    "import circles, modules",
    "modules over 350 lines",
}
SOURCES = {
    "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.top import run\n",
    "__main__.py": "import pkg.top\n",
    "top.py": "import json\nfrom pkg import middle\nfrom pkg.low.a import x\n" + "\n" * 20,
    "middle.py": "def late():\n    from .low import b\n",
    "low/__init__.py": "",
    "low/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import b\n",
    "low/b.py": "from pkg.low.a import x\nfrom ..base import error\n",
    "base.py": "",
    "alone.py": "import pkg.base as base\n",
}


Bench = Callable[..., str]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [latency.__name__, *map(str, arguments)])
        latency.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def package(tmp_path: Path) -> dict[str, Path]:
    """A package with a circle that only its type annotations need, and an import within a function."""
    for name, source in SOURCES.items():
        file = tmp_path / "pkg" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return import_graph.module_files(tmp_path, "pkg")


def test_imports_of_every_kind_are_found(package: dict[str, Path]) -> None:
    assert import_graph.module_graph(package) == {
        "pkg": {"pkg.top"},
        "pkg.__main__": {"pkg.top"},
        "pkg.top": {"pkg.middle", "pkg.low.a"},
        "pkg.middle": {"pkg.low.b"},
        "pkg.low": set(),
        "pkg.low.a": {"pkg.low.b"},
        "pkg.low.b": {"pkg.low.a", "pkg.base"},
        "pkg.base": set(),
        "pkg.alone": {"pkg.base"},
    }


def test_levels_circles_and_long_modules_of_a_package(package: dict[str, Path]) -> None:
    modules = import_graph.module_graph(package)
    assert import_graph.circles(modules) == [("pkg.low.a", "pkg.low.b")]
    assert import_graph.longest_chain(modules)[1:] == [
        ("pkg.top",),
        ("pkg.middle",),
        ("pkg.low.a", "pkg.low.b"),
        ("pkg.base",),
    ]
    packages = import_graph.package_graph(modules, "pkg")
    assert import_graph.circles(packages) == []
    assert import_graph.longest_chain(packages) == [("pkg.top",), ("pkg.middle",), ("pkg.low",), ("pkg.base",)]
    assert import_graph.long_modules(package, 20) == {"pkg.top": 23}
    assert import_graph.long_modules(package, 23) == {}


def test_a_folder_without_the_package_is_refused(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench("--checkout", tmp_path)
    assert "does not contain fmnist_search/__main__.py" in capsys.readouterr().err


@pytest.mark.slow
def test_each_checkout_has_a_column_and_a_file_of_its_own(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "before").symlink_to(latency.ROOT)
    folders = ("--checkout", tmp_path / "before", "--checkout", latency.ROOT)
    text = bench("--only", "space", "--rounds", 1, *folders, "--save", tmp_path / "results")
    header, literal, used = text.splitlines()[4:7]
    assert header.split() == ["yardstick", "before", "ratio", latency.ROOT.name, "ratio"]
    assert literal.startswith('space (s): against python -c "import pydantic, typer, rich"')
    assert used.startswith("space (s): against a script that uses pydantic, typer and rich")
    assert literal.count("n=1") == 3
    assert str(tmp_path) not in text
    saved = [BenchmarkResult.from_json(path.read_text()) for path in sorted((tmp_path / "results").iterdir())]
    assert {result.subject for result in saved} == {"before", ""}
    one, other = (result.figures[0] for result in saved)
    assert one.theirs == other.theirs
    assert one.ours != other.ours


@pytest.mark.slow
def test_the_structure_alone_starts_no_command(bench: Bench) -> None:
    (result,) = json.loads(bench("--only", "imports", "--json"))
    figures = {figure["what"]: figure["ours"] for figure in result["figures"]}
    assert figures.keys() == STRUCTURE
    assert figures["import levels, modules"] >= figures["import levels, packages"] > [1]
    assert result["remarks"][0].startswith("longest chain of packages: cli > ")


@pytest.mark.exhaustive
def test_commands_are_timed_against_their_yardsticks(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "mini.toml").write_text(MINI)
    # One command of each comparison: the others differ in their arguments alone, and each takes seconds.
    firsts = {comparison.commands[0].what: len(comparison.yardsticks) for comparison in COMPARISONS}
    only = [word for name in [*firsts, latency.FIRST_EPOCH] for word in ("--only", name)]
    text = bench("--rounds", 1, *only, "--study", tmp_path / "mini.toml", "--json", "--save", tmp_path / "results")
    (path,) = (tmp_path / "results").iterdir()
    saved = BenchmarkResult.from_json(path.read_text())
    assert [json.loads(path.read_text())] == json.loads(text)
    assert saved.command.startswith("python -m benchmarks.latency --rounds 1 --only status --only 'studies list'")
    assert saved.command.endswith(" --study mini.toml")
    compared: dict[str, list[float]] = {figure.what: [] for figure in saved.figures}
    for figure in saved.figures:
        assert len(figure.ours) == 1
        compared[figure.what] += figure.theirs
    assert firsts.keys() == {"status", "studies list", "predict --test-image 0", "search --dry-run"}
    expected = {**firsts, "studies list, no store": firsts["studies list"], latency.FIRST_EPOCH: 0}
    assert {what: len(theirs) for what, theirs in compared.items()} == expected
    assert all(figure.ours[0] > 0 for figure in saved.figures if figure.unit == "s")
