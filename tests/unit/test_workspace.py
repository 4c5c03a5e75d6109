"""Files land where a user expects them, and where MLflow itself would put its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fmnist_search.workspace import Workspace, image_cache_folder, resolve_tracking_uri, resolve_workdir, sqlite_path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG folders are those of Linux")
def test_images_are_cached_once_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert image_cache_folder() == tmp_path / "fmnist-search" / "images"


def test_tracking_goes_to_mlflow_db_in_the_current_folder(here: Path) -> None:
    assert resolve_tracking_uri() == f"sqlite:///{here}/mlflow.db"


def test_the_environment_moves_tracking_and_the_command_line_moves_it_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_tracking_uri() == "http://server:5000"
    assert resolve_tracking_uri("http://other:5000") == "http://other:5000"


def test_an_empty_environment_variable_counts_as_none(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("FMNIST_SEARCH_HOME", "")
    assert resolve_tracking_uri() == f"sqlite:///{here}/mlflow.db"
    assert resolve_workdir(resolve_tracking_uri()) == here / "fmnist-search"


def test_a_relative_sqlite_address_still_means_the_same_file_after_a_change_of_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = resolve_tracking_uri("sqlite:///runs/store.db")
    monkeypatch.chdir("/")
    assert resolve_tracking_uri(uri) == uri
    assert sqlite_path(uri) == here / "runs" / "store.db"


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:////var/store.db", Path("/var/store.db")),
        ("http://server:5000", None),
        ("postgresql://server/mlflow", None),
        ("databricks", None),
    ],
)
def test_only_a_sqlite_address_has_a_file(uri: str, file: Path | None) -> None:
    assert sqlite_path(uri) == file


def test_our_files_stand_beside_the_tracking_database(here: Path) -> None:
    assert resolve_workdir(resolve_tracking_uri("sqlite:///runs/store.db")) == here / "runs" / "fmnist-search"


def test_our_files_go_where_the_user_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_SEARCH_HOME", "home")
    assert resolve_workdir(resolve_tracking_uri()) == here / "home"
    assert resolve_workdir(resolve_tracking_uri(), "chosen") == here / "chosen"


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG folders are those of Linux")
def test_with_a_tracking_server_our_files_go_to_the_users_data_folder_one_a_server(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(here / "data"))
    first, second = resolve_workdir("http://one:5000"), resolve_workdir("http://two:5000")
    assert first != second
    assert {first.parent, second.parent} == {here / "data" / "fmnist-search"}


def test_a_password_in_the_tracking_address_never_becomes_the_name_of_a_folder() -> None:
    folder = resolve_workdir("https://ada:secret@server:5000")
    assert "secret" not in str(folder)
    assert folder == resolve_workdir("https://server:5000")


def test_a_home_is_found_once_and_holds_everything(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Workspace.resolve()
    monkeypatch.chdir("/")
    assert home == Workspace(f"sqlite:///{here}/mlflow.db", here / "fmnist-search")
    assert sqlite_path(home.storage_url) == here / "fmnist-search" / "optuna.db"
    assert here / "fmnist-search" in home.weights_path("first", 7).parents


def test_weights_of_studies_and_trials_never_share_a_file(here: Path) -> None:
    home = Workspace.resolve()
    files = [home.weights_path(study, number) for study in ("first", "second") for number in (0, 1, 10, 1_000)]
    assert len(set(files)) == len(files)
