"""Functions that format text, and the one that removes passwords from it."""

import re
import shlex
from collections.abc import Sequence

REDACTED = "***"

_CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, reorder or break a line, and bytes of file names that are not UTF-8."""

_MARKDOWN_CHARACTERS = re.compile(r"[\\`*\[\]<>|~&$@]|(?<![^\W_])_+|_+(?![^\W_])|:(?=\S)|(?<=www)\.", re.IGNORECASE)
_TABLE_RULE, _CELL_SPACE = re.compile(r"[|\- ]*"), "&emsp;"
_MARKDOWN_BLOCK_START = re.compile(r"^(\d*)([#+\-=.)])")


def printable(text: str, *, keep: str = "") -> str:
    """Return a text that a terminal shows as it is: control characters, except `keep`, become escapes such as \\x1b."""
    return _CONTROL_CHARACTERS.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


# The lookbehinds make a search of a long word linear: it is tried at its first character only.
_USERINFO = r"(?P<scheme>(?<![a-zA-Z0-9+.-])[a-zA-Z0-9+.-]*://)(?P<user>[^\s:/@]*)(?P<password>:{any}*)?@"
_TOKENS = re.compile(
    r"(?i)((?<![\w-])[\w-]*(?:password|passwd|pwd|token|secret|access_?key)=)(?!(?:true|false)(?![^\s&]))[^\s&]+"
)


def redact(text: str) -> str:
    """Return the text without the passwords and tokens in its addresses.

    A part that might be a password is replaced as well, for example between a port and a later `@`.
    """
    return _TOKENS.sub(rf"\1{REDACTED}", re.sub(_USERINFO.format(any=r"\S"), _without_password, text))


def without_credentials(address: str) -> str:
    """Return the address of a web page without user and password."""
    return re.sub(r"(?<=://)[^/?#]*@", "", address, count=1)


def redacted_command(arguments: Sequence[str]) -> str:
    """Return a command line for a shell, without the passwords in its arguments."""
    # Within an argument, a password may contain spaces.
    every = re.compile(_USERINFO.format(any="."), re.DOTALL)
    return shlex.join(redact(every.sub(_without_password, argument)) for argument in arguments)


def _without_password(found: re.Match[str]) -> str:
    scheme, user, password = found["scheme"], found["user"], found["password"]
    if "http" in scheme.lower():  # the user may be a token
        return f"{scheme}{REDACTED}@"
    return f"{scheme}{user}:{REDACTED}@" if password else found[0]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without passwords, or its class if the message is empty."""
    return redact(next(iter(str(error).splitlines()), type(error).__name__))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table without a final newline. The first row is the head; cells are not escaped."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])


def space_out_tables(markdown: str) -> str:
    """Return a text whose tables have space between their columns in MLflow's UI, which gives cells none.

    The space is an entity: spaces at the end of a cell, of any kind, are removed.
    """
    lines = markdown.split("\n")
    return "\n".join(
        line.replace(" | ", f"{_CELL_SPACE} | ") if line.startswith("| ") and not _TABLE_RULE.fullmatch(line) else line
        for line in lines
    )


def escape_markdown(text: str) -> str:
    """Return a text as one line that Markdown shows as it is, without markup or HTML.

    Special characters become numeric entities. The Markdown of MLflow's UI shows some backslashes that CommonMark
    removes; it makes links of addresses, and pictures of words between colons.
    """
    line = _MARKDOWN_CHARACTERS.sub(lambda found: _entities(found[0]), printable(" ".join(text.split())))
    return _MARKDOWN_BLOCK_START.sub(lambda found: found[1] + _entities(found[2]), line)


def _entities(characters: str) -> str:
    return "".join(f"&#{ord(character)};" for character in characters)
