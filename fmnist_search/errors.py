"""The exception for mistakes that the user can correct. Any other exception is a bug or a failure."""

import difflib
from collections.abc import Iterable

from fmnist_search.text import redact


class UserError(ValueError):
    """A mistake that the user can correct. Each line names the place, the problem and the remedy.

    The command line prints the lines without a traceback and exits with `exit_code`. Passwords are removed from them.
    """

    def __init__(self, *lines: str, exit_code: int = 2):
        self.lines = tuple(map(redact, lines))
        super().__init__("\n".join(self.lines))
        self.exit_code = exit_code


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for an unknown name: the nearest known one, or the list of all of them.

    A dotted name is compared with the names of its own group first.
    """
    known = sorted(known)
    grouped = [other for other in known if other.rpartition(".")[2] == name]
    if len(grouped) == 1:
        return f"did you mean {grouped[0]!r}?"
    group = name.rpartition(".")[0]
    peers = {other.removeprefix(f"{group}."): other for other in known if other.rpartition(".")[0] == group}
    candidates = peers or {other: other for other in known}
    close = difflib.get_close_matches(name.removeprefix(f"{group}."), candidates, n=1, cutoff=0.5)
    return f"did you mean {candidates[close[0]]!r}?" if close else f"known: {', '.join(candidates.values())}"
