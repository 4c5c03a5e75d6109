"""Files land where a user expects them, and where MLflow itself would put its own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.utils.file_utils import local_file_uri_to_path

from fmnist_search.errors import UserError
from fmnist_search.workspace import (
    Workspace,
    artifact_path,
    artifact_uri,
    image_cache_folder,
    resolve_tracking_uri,
    resolve_workdir,
    sqlite_path,
    sqlite_uri,
)


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


FOLDER_NAMES = ["is it good?", "100%25", "x%20y", "a#b?c", "größer", "a;b&c=d", "file:x", 'it\'s "it"', "me@work"]


@pytest.mark.parametrize("name", FOLDER_NAMES)
def test_an_address_names_the_same_file_for_all_libraries(tmp_path: Path, name: str) -> None:
    database, artifacts = tmp_path / name / "mlflow.db", tmp_path / name / "mlruns"
    uri = sqlite_uri(database)
    assert sqlite_path(uri) == database
    assert resolve_tracking_uri(uri) == uri
    assert sqlalchemy.make_url(uri).database == str(database)
    assert artifact_path(artifact_uri(artifacts)) == artifacts
    assert local_file_uri_to_path(artifact_uri(artifacts)) == str(artifacts)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", FOLDER_NAMES)
def test_the_current_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    workspace = Workspace.resolve()
    assert sqlite_path(workspace.tracking_uri) == folder / "mlflow.db"
    assert sqlite_path(workspace.storage_url) == workspace.folder / "optuna.db"
    assert workspace.folder == folder / "fmnist-search"


def test_the_settings_in_a_sqlite_address_stay(here: Path) -> None:
    uri = resolve_tracking_uri("sqlite:///store.db?timeout=60")
    assert uri == f"sqlite:///{here}/store.db?timeout=60"
    assert sqlite_path(uri) == here / "store.db"


def test_a_server_keeps_artifacts_that_are_no_files_here() -> None:
    for uri in ("mlflow-artifacts:/1/abc", "s3://bucket/a", "file://server/share"):
        assert artifact_path(uri) is None


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://?a=b", "sqlite:///file:x?uri=true"]
)
def test_a_store_without_a_file_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match=r"names no file.*give one such as sqlite:///mlflow\.db"):
        resolve_tracking_uri(uri)


def test_a_question_mark_in_a_given_address_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match="write %3F"):
        resolve_tracking_uri("sqlite:///is it good?/mlflow.db")


@pytest.mark.parametrize("run_id", ["../x", "/etc", "..", "", "a/b"])
def test_a_run_never_leads_out_of_the_folder(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(UserError, match=r"run: .* is not a valid name"):
        Workspace("sqlite:///mlflow.db", tmp_path).training_folder(run_id)


def test_the_address_of_a_server_never_leads_out_of_the_users_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for uri in ("http://host/../../x", "http://../x", "postgresql:///../x"):
        folder = resolve_workdir(uri)
        assert tmp_path / "fmnist-search" in folder.parents
        assert ".." not in folder.parts


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write")
def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_created(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/proc/x/y: cannot be written \(.*\); .*--workdir"):
        Workspace(sqlite_uri(tmp_path / "mlflow.db"), Path("/proc/x/y")).check_writable()
    with pytest.raises(UserError, match=r"/proc: cannot be written \(.*\); .*--tracking-uri"):
        Workspace("sqlite:////proc/mlflow.db", tmp_path / "new").check_writable()
    Workspace(sqlite_uri(tmp_path / "mlflow.db"), tmp_path / "new").check_writable()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that everybody may write, as /tmp."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


NAMELESS_SCRIPT = """
import os, sys
import platformdirs
from fmnist_search import user_account, workspace
os.setgid(54321), os.setuid(54321)
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
    os.environ.pop(name, None)
os.environ.update(dict(argument.split("=") for argument in sys.argv[1:]))
try:
    print(workspace.resolve_workdir("http://server"))
except workspace.UserError as error:
    print(error)
user_account.complete_environment()
print(user_account.user_name(), os.environ["LOGNAME"], os.environ["HOME"], workspace.image_cache_folder(), sep="\\n")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_name_and_home_gets_a_folder_for_temporary_files(shared_folder: Path) -> None:
    run = [sys.executable, "-c", NAMELESS_SCRIPT, f"TMPDIR={shared_folder}"]
    private = shared_folder / "fmnist-search-54321"
    for _ in range(2):
        message, *found = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
        assert message == "the home folder is missing; give --workdir or FMNIST_SEARCH_HOME"
        assert found == ["54321", "54321", str(private), str(private / ".cache" / "fmnist-search" / "images")]
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    run.append("HOME=/proc")
    *_, home, cache = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert (home, cache) == ("/proc", str(private / "images"))
    # A folder of that name that somebody else has made is not used.
    os.chown(private, 0, 0)
    *_, cache = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert private not in Path(cache).parents
    assert shared_folder in Path(cache).parents
