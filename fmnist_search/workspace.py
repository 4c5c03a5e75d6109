"""The places of all files: the image cache, the MLflow store, and the folder of this program beside it.

Every address of a file and every name that becomes part of a path is made and read here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import ParseResult, unquote, urlparse

from fmnist_search.errors import UserError
from fmnist_search.files import private_temporary_folder
from fmnist_search.filesystems import network_file_problems

APP_NAME = "fmnist-search"
STORAGE_FILE, OUTBOX_FILE = "optuna.db", "outbox.db"

NAME_PATTERN = r"^\w[\w .+@-]*$"
"""What a name may hold, because it becomes the name of a folder and part of URLs."""
MAX_NAME_BYTES = 200
"""File systems allow 255 bytes in a name; `--fresh` adds 33 to the name of the earlier study."""
TRAININGS_FOLDER = "train"
"""The folder of the weights of single trainings, beside those of the studies."""
ARCHIVED_NAME = re.compile(r" until \d{4}-\d\d-\d\d \d\d\.\d\d\.\d\d\.\d{6}$")
"""The end of the name of a study that --fresh archived."""

_SQLITE_URI = re.compile(r"sqlite(?:\+pysqlite)?://(?:/(?P<path>[^?]*))?(?:\?(?P<query>.*))?", re.DOTALL)


def image_cache_folder() -> Path:
    """Return the folder of the verified images, which all studies of a user share."""
    return _user_cache_folder() / "images"


def template_folder() -> Path:
    """Return the folder of empty stores that new ones are copied from."""
    return _user_cache_folder() / "templates"


def plugin_list_file() -> Path:
    """Return the file that says which module of a user's own registers which family of networks."""
    return _user_cache_folder() / "plugins.json"


def lock_file(tracking_uri: str) -> Path:
    """Return the file that the processes of a user lock while they change aliases in a store."""
    return _user_cache_folder() / "locks" / f"{hashlib.sha256(tracking_uri.encode()).hexdigest()[:16]}.lock"


def _user_cache_folder() -> Path:
    """Return the folder of the user's cache; without a home folder that can be written, one for temporary files."""
    import platformdirs  # not at the top: reading images and training work where it is not installed

    with contextlib.suppress(RuntimeError):  # in containers, a user may have neither a name nor a home folder
        folder = platformdirs.user_cache_path(APP_NAME)
        if folder.is_dir() or os.access(_existing(folder), os.W_OK | os.X_OK):
            return folder
    return private_temporary_folder(f"{APP_NAME}-{os.getuid()}")


@dataclass(frozen=True)
class Workspace:
    """The places of a user's studies: the MLflow store, the folder of this program's files, the folder of the images.

    If `data_dir` is None, the images are searched in the usual places. If `storage` is None, Optuna's storage is a
    SQLite file in the folder.
    """

    tracking_uri: str
    folder: Path
    data_dir: Path | None = None
    storage: str | None = dataclasses.field(default=None, repr=False)  # it may hold a password

    @classmethod
    def resolve(
        cls,
        tracking_uri: str | None = None,
        workdir: str | Path | None = None,
        data_dir: str | Path | None = None,
        storage: str | None = None,
    ) -> Workspace:
        """Return the workspace that these options, the environment and the current folder define.

        Raises:
            UserError: if the current folder holds MLflow's old file store and no store is named; if the storage is of
                a kind that is not supported.
        """
        uri = resolve_tracking_uri(tracking_uri)
        folder = resolve_workdir(uri, workdir)
        return cls(uri, folder, Path(data_dir) if data_dir else None, resolve_storage_url(storage))

    @property
    def storage_url(self) -> str:
        """The URL of Optuna's storage."""
        return self.storage or sqlite_uri(self.folder / STORAGE_FILE)

    @property
    def outbox_path(self) -> Path:
        """The file with the events that are on their way to MLflow."""
        return self.folder / OUTBOX_FILE

    @property
    def sessions_folder(self) -> Path:
        """The folder with a file for each session of a study that runs at the moment."""
        return self.folder / "sessions"

    def log_path(self, study: str) -> Path:
        """Return the file with the output of searches that run in the background."""
        return self.folder / "logs" / f"{study}.log"

    def checkpoints_folder(self, study: str) -> Path:
        """Return the folder with the checkpoints of the trials of a study that have not ended."""
        return self.folder / "checkpoints" / study

    def weights_path(self, study: str, number: int) -> Path:
        """Return the file with the weights of a completed trial."""
        return self.folder / "weights" / study / f"{number:03d}.pt"

    def training_folder(self, run_id: str) -> Path:
        """Return the folder with the checkpoints of a single training.

        Raises:
            UserError: if the id is no name.
        """
        check_name("run", run_id)
        return self.folder / "weights" / TRAININGS_FOLDER / run_id

    def check_writable(self) -> None:
        """Check that files can be written to the folder of this program, and to that of a store in a file.

        Raises:
            UserError: if one of them cannot be written, or if SQLite files would be on a network file system.
        """
        check_folder_is_writable(self.folder, "choose another folder with --workdir or FMNIST_SEARCH_HOME")
        database, storage = sqlite_path(self.tracking_uri), sqlite_path(self.storage_url)
        if database:
            check_folder_is_writable(database.parent, "work in another folder, or give another --tracking-uri")
        for path in filter(None, (database, storage, self.outbox_path)):
            if path.exists() and not os.access(path, os.W_OK):
                raise UserError(f"{path}: cannot be written; change its permissions, or work in another folder")
        if problems := network_file_problems(self.sqlite_files):
            raise UserError(*problems)

    @property
    def sqlite_files(self) -> dict[Path, str]:
        """The SQLite files, each with what a user can do if its folder is not fit for one."""
        workdir = "a local folder with --workdir or FMNIST_SEARCH_HOME"
        remedies = {
            sqlite_path(self.storage_url): f"give the address of PostgreSQL with --storage, or {workdir}",
            self.outbox_path: f"give {workdir}",
            sqlite_path(
                self.tracking_uri
            ): "give the address of a server with --tracking-uri, or work in a local folder",
        }
        return {path: remedy for path, remedy in remedies.items() if path}

    def study_paths(self, study: str) -> tuple[Path, ...]:
        """Return the folders and the file that belong to a study alone; some of them may not exist."""
        return self.folder / "weights" / study, self.checkpoints_folder(study), self.log_path(study)

    def rename_study(self, study: str, renamed: str) -> None:
        """Move the weights and the checkpoints of a study that was renamed."""
        for folder in (self.folder / "weights" / study, self.checkpoints_folder(study)):
            if folder.exists():
                folder.rename(folder.with_name(renamed))


def check_name(key: str, name: str) -> None:
    """Check a name that becomes part of a path.

    Raises:
        UserError: if it is too long, or has characters that no name may have.
    """
    if not re.fullmatch(NAME_PATTERN, name) or name.endswith("\n"):
        raise UserError(f"{key}: {name!r} is not a valid name; use letters, digits, spaces and . _ + @ -")
    if (size := len(name.encode())) > MAX_NAME_BYTES:
        raise UserError(
            f"{key}: {name[:20]!r}... has {size} bytes in UTF-8, too many for the name of a folder; give at most "
            f"{MAX_NAME_BYTES}"
        )
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{key}: {name!r} cannot name a folder in this locale ({error.encoding}); set PYTHONUTF8=1, or give "
            "another name"
        ) from None


def check_study_name(key: str, name: str) -> None:
    """Check the name of a new study.

    Raises:
        UserError: if it is no name for a folder, or belongs to the weights of something else.
    """
    check_name(key, name)
    if name.casefold() == TRAININGS_FOLDER:
        raise UserError(f"{key}: {name!r} is reserved for trainings without a study; give another name")
    if ARCHIVED_NAME.search(name):
        raise UserError(f"{key}: {name!r} ends like a study that --fresh archived; give another name")


def check_folder_is_writable(folder: Path, remedy: str) -> None:
    """Check that files can be written to a folder, or that it can be created.

    Raises:
        UserError: if they cannot, with the remedy.
    """
    try:
        tempfile.TemporaryFile(dir=_existing(folder)).close()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); {remedy}") from None


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


# ---------------------------------------------------------------------------------- addresses of files


def resolve_tracking_uri(given: str | None = None) -> str:
    """Return the MLflow store: the given one, else MLFLOW_TRACKING_URI, else `mlflow.db` in the current folder.

    The path of a SQLite URI is made absolute, so that it names the same file after a change of folder.

    Raises:
        UserError: if no store is named and the current folder holds MLflow's old file store, which MLflow would take;
            if the store is a database in memory, or its address is malformed.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None and any(Path("mlruns").glob("[0-9]*/meta.yaml")):
        raise UserError(
            "./mlruns: is the file store of an older MLflow, which prevents the use of mlflow.db; convert it with "
            "`mlflow migrate-filestore --source mlruns --target sqlite:///mlflow.db` and rename it, or name a store "
            "with --tracking-uri"
        )
    if not uri:
        return sqlite_uri(Path("mlflow.db"))
    database = sqlite_path(uri)
    if database is None:
        _parse_address(uri)
        return uri
    _, mark, query = uri.partition("?")
    return sqlite_uri(database) + mark + query


def resolve_storage_url(given: str | None = None) -> str | None:
    """Return Optuna's storage: the given one, else FMNIST_SEARCH_STORAGE; None for the SQLite file of the workspace.

    Raises:
        UserError: if it is of a kind that is not supported, or a database in memory.
    """
    url = given or os.environ.get("FMNIST_SEARCH_STORAGE")
    if not url:
        return None
    if re.match(r"postgresql(\+\w+)?://", url):
        return url
    if database := sqlite_path(url, "storage"):
        return sqlite_uri(database)
    raise UserError(
        f"storage {url}: is not supported; give sqlite:///FILE or postgresql://USER@HOST/DATABASE with --storage or "
        "FMNIST_SEARCH_STORAGE"
    )


def _parse_address(uri: str) -> ParseResult:
    try:
        return urlparse(uri)
    except ValueError as error:  # brackets that enclose no IPv6 address
        raise UserError(
            f"tracking {uri}: is not an address ({error}); check MLFLOW_TRACKING_URI or --tracking-uri"
        ) from None


def sqlite_uri(path: Path) -> str:
    """Return the address of a SQLite file, as SQLAlchemy reads it; `sqlite_path` is the reverse."""
    plain = str(path.absolute())
    quoted = plain.replace("%", "%25").replace("?", "%3F")
    # MLflow creates the folder of an address that begins with sqlite:/// and does not decode its name for that.
    return f"sqlite:///{plain}" if quoted == plain else f"sqlite+pysqlite:///{quoted}"


def sqlite_path(uri: str, key: str = "tracking") -> Path | None:
    """Return the absolute path of the file of a SQLite address; None for any other address. `key` is named in errors.

    Raises:
        UserError: if it is the address of a database in memory, or is not written as an address.
    """
    parts = _SQLITE_URI.fullmatch(uri)
    if parts is None:
        return None
    path, query = unquote(parts["path"] or ""), parts["query"]
    if path in ("", ":memory:") or path.startswith("file:"):
        raise UserError(
            f"{key} {uri}: names no file, so nothing could be read back; give one such as sqlite:///mlflow.db"
        )
    if query and not re.fullmatch(r"[\w.]+=[^&]*(&[\w.]+=[^&]*)*", query):
        raise UserError(f"{key} {uri}: has a ? in its path; write %3F for it, and %25 for a percent sign")
    return Path(path).absolute()


def artifact_uri(folder: Path) -> str:
    """Return the address of a folder of artifacts, as MLflow reads it; `artifact_path` is the reverse."""
    plain = str(folder.absolute())
    # MLflow decodes paths as well, and takes ? and # for the ends of addresses.
    return folder.absolute().as_uri() if re.search("[%?#]", plain) else plain


def artifact_path(uri: str) -> Path | None:
    """Return the path behind an address of artifacts; None if they are not files of this machine."""
    if uri.startswith("/"):
        return Path(unquote(uri))
    address = urlparse(uri)
    return Path(unquote(address.path)) if address.scheme == "file" and not address.netloc else None


def resolve_workdir(tracking_uri: str, given: str | Path | None = None) -> Path:
    """Return the folder of this program's files.

    It is the given one, else FMNIST_SEARCH_HOME, else beside a SQLite store, else in the user's data folder.

    Raises:
        UserError: if it would be in the home folder of a user who has none.
    """
    chosen = given or os.environ.get("FMNIST_SEARCH_HOME")
    if chosen:
        return Path(chosen).absolute()
    database = sqlite_path(tracking_uri)
    if database:
        return database.parent / APP_NAME
    server = _parse_address(tracking_uri)
    parts = [server.netloc.rpartition("@")[2], *server.path.split("/")]
    import platformdirs

    try:
        home = platformdirs.user_data_path(APP_NAME)
    except RuntimeError:  # in containers, a user may have neither a name nor a home folder
        raise UserError("the home folder is missing; give --workdir or FMNIST_SEARCH_HOME") from None
    return home.joinpath(*(part for part in parts if part not in ("", ".", "..")))
