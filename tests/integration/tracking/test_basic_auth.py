"""A server with users and permissions: what is refused is refused before anything is trained, and is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from fmnist_search.search.study_store import StudyStore
from tests.integration.conftest import TINY_STUDY, CommandResult, run_command
from tests.integration.servers import MlflowServer, running_server

ADMIN, USER = ("admin", "an admin's password"), ("bob", "the password of bob")
FEW = ("--trials", "1", "--set", "budget.epochs=1", "--set", "finalists.seeds=1", "--set", "finalists.epochs=1")
CONFIG = """
[mlflow]
default_permission = {permission}
database_uri = sqlite:///{folder}/users.db
admin_username = admin
auth_cache_ttl_seconds = 600
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@dataclass(frozen=True)
class Server:
    """A server on which an experiment and a registered model, both named fmnist-search, belong to the administrator."""

    url: str
    folder: Path

    def post(self, path: str, **body: str) -> None:
        requests.post(f"{self.url}/api/2.0/mlflow/{path}", json=body, auth=ADMIN, timeout=60).raise_for_status()

    def search(self, *options: str, user: str = USER[0], password: str = USER[1]) -> CommandResult:
        names = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password} if user else {}
        where = {"MLFLOW_TRACKING_URI": self.url, "FMNIST_SEARCH_HOME": str(self.folder / "home")}
        return run_command(self.folder, "search", "tiny.toml", *FEW, *options, **where, **names)

    def assert_no_study(self) -> None:
        database = self.folder / "home" / "optuna.db"
        assert not database.exists() or not StudyStore.study_names(f"sqlite:///{database}")


@pytest.fixture(scope="module", params=["READ", "NO_PERMISSIONS"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("auth")
    (folder / "auth.ini").write_text(CONFIG.format(permission=request.param, folder=folder))
    (folder / "tiny.toml").write_text(TINY_STUDY)
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key",
    }
    with running_server(MlflowServer(folder, "", "--app-name", "basic-auth", **settings)) as started:
        found = Server(started.url, folder)
        found.post("users/create", username=USER[0], password=USER[1])
        found.post("experiments/create", name="fmnist-search")
        found.post("registered-models/create", name="fmnist-search")
        yield found


@pytest.mark.slow
def test_permissions_are_missed_before_anything_is_trained_and_named(server: Server) -> None:
    nobody, wrong = server.search(user=""), server.search(password="not the password")
    assert [nobody.exit_code, wrong.exit_code] == [2, 2]
    assert "the server does not accept a user without a name; set MLFLOW_TRACKING_USERNAME" in nobody.stderr
    assert "the server does not accept the user 'bob'; set MLFLOW_TRACKING_USERNAME" in wrong.stderr
    assert "not the password" not in wrong.stderr

    foreign_experiment = server.search("--set", "finalists.model_name=bobs")
    assert foreign_experiment.exit_code == 2
    (line,) = foreign_experiment.errors
    assert "experiment 'fmnist-search': the server does not permit this to the user 'bob'" in line
    assert "--set experiment=NAME" in line

    foreign_model = server.search("--set", "experiment=bob")
    assert foreign_model.exit_code == 2
    (line,) = foreign_model.errors
    assert "finalists.model_name: 'fmnist-search': the server does not permit this to the user 'bob'" in line
    assert "--set finalists.model_name=NAME" in line
    server.assert_no_study()

    own = server.search("--set", "experiment=bob", "--set", "finalists.model_name=bobs")
    assert own.exit_code == 0, own.stderr
    assert "registered as models:/bobs/1 (champion)" in own.stdout
