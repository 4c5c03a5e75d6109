"""The errors that pydantic finds in a study file, as lines for the user: key, value, remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from fmnist_search.config.sections import section_of
from fmnist_search.errors import UserError, did_you_mean

VARIANT_KEYS = ("sampler", "pruner")
"""Tables that have several forms; pydantic puts the name of the form into the location of an error."""


def error_lines(details: ErrorDetails, study: type[BaseModel]) -> list[str]:
    """Return one error of pydantic as lines; a `UserError` that a validator raised keeps its lines."""
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return list(cause.lines)
    location = [str(part) for part in details["loc"]]
    known = _known_keys(study, location)
    if len(location) > 1 and location[0] in VARIANT_KEYS:
        del location[1]
    key = ".".join(location) or "study"
    kind, given = details["type"], details["input"]
    match kind:
        case "extra_forbidden":
            return [f"{key}: unknown key; {did_you_mean(location[-1], known)}"]
        case "missing":
            return [f"{key}: is missing; every study file needs it"]
        case "union_tag_invalid":
            name = str(details["ctx"]["tag"])
            names = [tag.strip(" '") for tag in str(details["ctx"]["expected_tags"]).split(",")]
            return [f"{key}: no {key} {name!r}; {did_you_mean(name, names)}"]
        case "string_pattern_mismatch":
            return [f"{key}: {given!r} is not a valid name; use letters, digits, spaces and . _ + @ -"]
        case "model_type" | "model_attributes_type":
            return [f"{key}: {given!r} is not a table; write [{key}] above its keys"]
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return [f"{key}: {message}" if isinstance(given, Mapping) else f"{key}: {given!r} {message}"]


def _known_keys(study: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys that are allowed at the location of an unknown key."""
    section: Any = study
    for name in location[:-1][:1] if location[0] in VARIANT_KEYS else location[:-1]:
        annotation = section.model_fields[name].annotation
        section = section_of(annotation) or annotation
    variants = getattr(section, "__args__", (section,))
    chosen = [v for v in variants if len(variants) > 1 and v.model_fields["name"].default == location[1]]
    return [name for variant in chosen or variants for name in getattr(variant, "model_fields", ())]
