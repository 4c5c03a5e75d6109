"""Every command and every Python snippet that README and docs show runs, in a process of its own.

Commands of this program are forked from a process that has imported the libraries; test_wheel.py starts them anew.

Each page has a folder like a user's: with the study files of the repository, a finished study with its champion, and an
interrupted training. Study files are reduced, and trainings are shortened by options behind those that the page shows.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import pytest
from PIL import Image

from fmnist_search import Decision, Workspace, train
from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.workflows.settings import RunOptions
from fmnist_search.workspace import APP_NAME, image_cache_folder, template_folder
from tests.integration.conftest import FinishedStudy, clean_environment, copy_study
from tests.integration.servers import free_port, wait_for
from tests.support.command_server import CommandServer, ForkedCommand
from tests.support.pages import PAGES, ROOT, Snippet, all_commands, page_snippets, reduce_study_files

pytestmark = pytest.mark.slow

NOT_RUN = {
    "make *": "builds an environment, or measures for minutes to hours",
    "source .venv/bin/activate": "activates the environment of make",
    "mlflow run *": "builds an environment; test_mlflow_project.py runs it",
    "ssh -L 5000:*": "needs a second machine",
    "pip install *": "changes this environment",
    "ray *": "starts a cluster; test_ray_study.py searches on one",
    "RAY_health_check_*": "starts a cluster",
    "export RAY_AUTH_MODE=token": "needs a cluster",
    "fmnist-search search *--backend ray*": "needs a cluster; test_ray_study.py searches on one",
    "kubectl *": "needs Kubernetes",
    "export MLFLOW_*": "secrets are left out; test_outages.py starts a server with authentication",
    "mlflow server --app-name basic-auth *": "needs the secrets",
    "mlflow models *": "test_model_serving.py runs it",
    "curl http://127.0.0.1:5001/*": "needs `mlflow models serve`; test_model_serving.py sends the same",
    "fmnist-search search studies/quick.toml --tracking-uri http://HOST:5000": "needs the server with secrets",
    "python -m benchmarks.*": "measures for minutes to days; tests of the benchmarks run them with small figures",
    "fmnist-search stop": "needs a search in the background; test_background.py runs it",
    "fmnist-search data mnist": "may download the images of MNIST",
    "fmnist-search search": "the name of a command in a sentence",
    "fmnist-search train": "the name of a command in a sentence",
    "fmnist-search space": "the name of a command in a sentence",
}
"""Patterns of the commands that are not run, with the reason."""

TIMEOUT_SECONDS = 600
LOG_OF_A_LIBRARY = re.compile(r"^Traceback|^\[?[IWE ]*\d{4}[-/]\d\d[-/]\d\d[ T]|^\S*: ?\w*Warning: ", re.MULTILINE)
SHELL_SIGNS = set("|&;<>*$`(")
Process = subprocess.Popen[str]

SERVERS = ("fmnist-search ui", "mlflow server *")
"""Patterns of the commands that run until they are stopped: they must answer."""

SMALL_IMAGES = "--set data.train_images=300 --set data.validation=100"  # more than the largest batch of the champion
SMALL_TRAINING = f"{SMALL_IMAGES} --epochs 1"

SHORTER = {
    "fmnist-search search *--trials 60": "--trials 3",
    "fmnist-search search *--name on": f"--trials 5 --set pruner=none {SMALL_IMAGES}",  # importances need four trials
    "fmnist-search train --* --epochs *": "--epochs 4",
    "fmnist-search train lenet*": SMALL_TRAINING,
    "fmnist-search train separable*": SMALL_TRAINING,
    "fmnist-search train studies/recipes/*": SMALL_TRAINING,
    "fmnist-search train studies/recipes/accurate.toml *": "--set test_time=none",  # not ten views of 10,000 images
    "fmnist-search train lenet*--seeds *": "--seeds 2",
    "fmnist-search promote small-and-good *": "--max-parameters 100000 --recipes 1",
    "fmnist-search sweep-lr *": f"{SMALL_TRAINING} --seeds 1 --factors 1,2",
}
"""Options that are put behind matching commands, so that they take seconds."""

PLACEHOLDERS = {
    "COMMAND": "search",
    "FILE": "studies/quick.toml",
    "MODEL": "models:/fmnist-search@champion",
    "STUDY": "studies/quick.toml",
    "copy NAME": "copy quick",
    "--sampler NAME": "--sampler random",
    "--study quick": "--study tiny",
}

SMALL_RECIPE = {"data.train_images": 300, "data.validation": 1000, "epochs": 3, "model.width_1": 4, "batch_size": 50}

PYTHON_NAMES = {"README.md": "import numpy as np\nimages = np.zeros((2, 28, 28), dtype=np.uint8)\n"}
"""What the snippets of a page take as given."""


@dataclass(frozen=True)
class BaseFolder:
    """A folder with a finished study, two finished trainings and an interrupted one."""

    study: FinishedStudy
    trial_run_ids: list[str]
    training_run_ids: list[str]
    interrupted_run_id: str


@pytest.fixture(scope="module")
def base(tiny_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> BaseFolder:
    """Return the folder that those of all pages are copies of."""
    study = copy_study(tiny_study, tmp_path_factory.mktemp("base"))
    shutil.copytree(ROOT / "studies", study.folder / "studies")
    small_training = partial(
        train, workspace=Workspace.resolve(study.tracking_uri), run_options=RunOptions(plots=False)
    )
    finished = [small_training(Recipe().replace({**SMALL_RECIPE, "seed": seed}))[1] for seed in (1, 2)]
    result, interrupted = small_training(
        Recipe().replace(SMALL_RECIPE),
        stopper=lambda report: Decision.INTERRUPT if report.epoch == 2 else Decision.CONTINUE,
    )
    assert result.state.value == "interrupted"
    rows = study.run("leaderboard", "--json").json
    return BaseFolder(study, [row["run_id"] for row in rows], finished, interrupted)


@pytest.fixture(scope="module")
def commands() -> Iterator[CommandServer]:
    with contextlib.closing(CommandServer()) as server:
        yield server


class PageRunner:
    """Runs what a page shows, in a copy of the base folder, and collects what fails."""

    def __init__(self, page: Path, base: BaseFolder, commands: CommandServer, folder: Path):
        self._page, self._base, self._commands = page, base, commands
        self._folder = copy_study(base.study, folder).folder
        self._snippets = page_snippets(page)
        self._ports: dict[str, int] = {}
        self._servers = contextlib.ExitStack()
        self._environment = clean_environment(
            PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            PYTHONPATH=str(ROOT),
            XDG_DATA_HOME=str(folder / "data-home"),
            XDG_CACHE_HOME=str(folder / "cache-home"),
        )
        self.failures: list[str] = []
        self._write_files()

    def run(self) -> None:
        """Run every command once, and the Python snippets in one process, at the place of the first."""
        with self._servers:
            done: set[str] = set()
            for snippet in self._snippets:
                key = snippet.text if snippet.language == "console" else snippet.language
                if key in done:
                    continue
                done.add(key)
                if snippet.language == "python":
                    self._run_python()
                elif snippet.language == "console" and not matches(snippet.text, NOT_RUN):
                    self._run_command(snippet)

    def _write_files(self) -> None:
        """Write the files that the page's commands read. The user's cache has its images, and remembers no plugin."""
        cache = self._folder / "cache-home" / APP_NAME
        cache.mkdir(parents=True)
        for path in (image_cache_folder(), template_folder()):
            (cache / path.name).symlink_to(path)
        Image.new("RGB", (60, 40), "white").save(self._folder / "shoe.png")
        (self._folder / "mine.toml").write_text(recipe_to_toml(Recipe().replace(SMALL_RECIPE)))
        for snippet in self._snippets:
            if snippet.language == "python" and (file := re.match(r"# (\w+\.py)\n", snippet.text)):
                (self._folder / file[1]).write_text(snippet.text)
            if snippet.language == "toml" and "space" in (tables := tomllib.loads(snippet.text)):
                (self._folder / f"{tables['name']}.toml").write_text(snippet.text)

    def _run_python(self) -> None:
        code = [snippet.text for snippet in self._snippets if snippet.language == "python"]
        (self._folder / "snippets.py").write_text("\n".join([PYTHON_NAMES.get(self._page.name, ""), *code]))
        self._execute(f"{self._page.name}: Python", "python snippets.py")

    def _run_command(self, snippet: Snippet) -> None:
        reduce_study_files(self._folder)
        command = self._with_values(snippet.text)
        if matches(snippet.text, SERVERS):
            self._serve(snippet, command)
            return
        extra = [options for pattern, options in SHORTER.items() if fnmatch.fnmatchcase(snippet.text, pattern)]
        head, arrow, file = command.partition(" > ")
        self._execute(str(snippet), " ".join([head, *extra]) + arrow + file)

    def _with_values(self, command: str) -> str:
        """Return the command with values for its placeholders and with ports that are free."""
        for name, value in PLACEHOLDERS.items():
            command = re.sub(rf"\b{name}\b" if name.isalpha() else name, value, command)
        command = command.replace("--resume RUN_ID", f"--resume {self._base.interrupted_run_id}")
        # The test images must not judge a trial.
        run_ids = self._base.training_run_ids if "--test" in command.split() else self._base.trial_run_ids
        for run_id in run_ids:
            command = re.sub(r"\bRUN(_ID)?\b", run_id, command, count=1)
        for shown in re.findall(r"(?:127\.0\.0\.1:|--port )(\d+)", command):
            command = command.replace(shown, str(self._ports.setdefault(shown, free_port())))
        return command

    def _execute(self, shown: str, command: str) -> None:
        with self._start(command) as process:
            try:
                _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self.failures.append(f"{shown}\n  ran {command}\n  did not end in {TIMEOUT_SECONDS} s")
                return
        if process.returncode or LOG_OF_A_LIBRARY.search(errors):
            self.failures.append(f"{shown}\n  ran {command}\n  exit code {process.returncode}\n{errors[-2000:]}")

    def _start(self, command: str) -> contextlib.AbstractContextManager[Process | ForkedCommand]:
        """Start a command; one of this program without anything that only a shell understands is forked."""
        line, _, file = command.partition(" > ")
        program, *arguments = shlex.split(line)
        if program != "fmnist-search" or SHELL_SIGNS & {*line}:
            return start(command, self._folder, self._environment, subprocess.PIPE)
        output = self._folder / file if file else None
        return self._commands.start(self._folder, arguments, self._environment, output)

    def _serve(self, snippet: Snippet, command: str) -> None:
        """Start a server that stays until the end of the page, and wait until it answers."""
        if "--port" not in command:
            command += f" --port {free_port()}"
        port = re.search(r"--port (\d+)", command)[1]  # type: ignore[index]
        environment = {**self._environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = self._servers.enter_context((self._folder / "server.log").open("a"))
        self._servers.enter_context(start(command, self._folder, environment, log))
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
        except OSError as error:
            self.failures.append(f"{snippet}\n  ran {command}\n  does not answer: {error}")


@contextlib.contextmanager
def start(command: str, folder: Path, environment: dict[str, str], output: IO[str] | int) -> Iterator[Process]:
    """Start a command, and kill it with all that it started, if it still runs, at the end of the block."""
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def matches(command: str, patterns: dict[str, str] | tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(command, pattern) for pattern in patterns)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path, base: BaseFolder, commands: CommandServer, tmp_path: Path) -> None:
    runner = PageRunner(page, base, commands, tmp_path / "user")
    runner.run()
    assert not runner.failures, "\n".join(runner.failures)


def test_what_is_not_run_is_still_shown() -> None:
    shown = [snippet.text for snippet in all_commands()]
    for pattern in [*NOT_RUN, *SERVERS, *SHORTER]:
        assert any(fnmatch.fnmatchcase(command, pattern) for command in shown), pattern
