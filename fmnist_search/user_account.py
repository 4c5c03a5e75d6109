"""The user's name and home folder, which may be missing: in many containers a user is only a number."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from fmnist_search.files import private_temporary_folder


def user_name() -> str:
    """Return the name of the user, or the id as text if the system knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # the type depends on the version of Python
        return str(os.getuid())


def complete_environment() -> None:
    """Set the environment variables that libraries need where the user has no name or no home folder.

    MLflow cannot be imported without a home folder. MLflow and torch ask for the name, and matplotlib for a folder.
    """
    name = user_name()
    if name == str(os.getuid()):
        os.environ.setdefault("LOGNAME", name)
    temporary = f"fmnist-search-{name}"
    try:
        home = Path.home()
    except RuntimeError:
        home = private_temporary_folder(temporary)
        os.environ["HOME"] = str(home)
    if not os.access(home, os.W_OK | os.X_OK) and "MPLCONFIGDIR" not in os.environ:
        os.environ["MPLCONFIGDIR"] = str(private_temporary_folder(temporary))
