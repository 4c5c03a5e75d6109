"""The wheel works without the repository: the commands that the README shows for it, in an empty folder."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.integration.conftest import clean_environment
from tests.support.pages import ROOT, page_snippets, reduce_study_files

pytestmark = pytest.mark.slow

UV = [sys.executable, "-m", "uv"]

LATER_COMMANDS = """
import contextlib, io, json
from fmnist_search.cli import main

def run(*words):
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            main([*words])
    except SystemExit as ended:
        assert not ended.code, (words, ended.code)
    return printed.getvalue()

(best, *_) = json.loads(run("leaderboard", "--json"))
run("predict", "--test-image", "0")
run("train", "lenet", "--set", "data.train_images=200", "--epochs", "1")
run("train", "--from-run", best["run_id"], "--epochs", "1")
"""
"""More commands, in one process, because most of the time of each would be that of the imports."""


def run(*command: object, folder: Path, **changes: str) -> str:
    """Run a command to its end without the repository on the path; return what it prints."""
    environment = {name: value for name, value in clean_environment(**changes).items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that is built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    run(*UV, "build", "--out-dir", folder, ROOT, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path) -> Path:
    """Return the folder of the programs of an environment with the wheel and the dependencies of this one."""
    environment = wheel.parent / "environment"
    run(*UV, "venv", "--python", sys.executable, environment, folder=wheel.parent)
    python = environment / "bin" / "python"
    run(*UV, "pip", "install", "--no-deps", "--python", python, wheel, folder=wheel.parent)
    (packages,) = environment.glob("lib/python*/site-packages")
    # A folder that a .pth file names is searched, but its own .pth files, which point to the repository, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    used = run(python, "-c", "import fmnist_search; print(fmnist_search.__file__)", folder=wheel.parent)
    assert Path(used).is_relative_to(packages)
    return environment / "bin"


def test_the_wheel_holds_the_package_and_the_studies_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].removesuffix(".dist-info").split("-")[0] for name in names} == {"fmnist_search"}
    for study in (ROOT / "studies").glob("*.toml"):
        assert f"fmnist_search/shipped_studies/{study.name}" in names


def test_the_first_commands_of_the_readme_work_without_the_repository(programs: Path, tmp_path: Path) -> None:
    shown = page_snippets(ROOT / "README.md")
    commands = [snippet.text for snippet in shown if snippet.section == "Without the repository"]
    assert [command.split()[1] for command in commands] == ["data", "studies", "search"]
    for command in commands:
        reduce_study_files(tmp_path)
        run("bash", "-c", command, folder=tmp_path, PATH=f"{programs}:{clean_environment()['PATH']}")
    run(programs / "python", "-c", LATER_COMMANDS, folder=tmp_path)
