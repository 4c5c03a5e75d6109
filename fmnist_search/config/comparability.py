"""What must be equal for trials to be comparable: within a study that is continued, and between studies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fmnist_search.config.domain import Domain, Range
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.formatting import format_value
from fmnist_search.results.objectives import ACCURACY


def check_comparable(stored: StudyConfig, given: StudyConfig) -> list[str]:
    """Return a line for each range that is wider in the given config than in the stored one.

    Raises:
        UserError: if anything else differs that would make trials incomparable, with a line for each key.
    """
    accuracy_only = {"objective.metrics": ACCURACY}
    before, now = accuracy_only | stored.comparability_key(), accuracy_only | given.comparability_key()
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    old, new = dict(stored.domains()), dict(given.domains())
    widened = [key for key in changed if _is_widened(old.get(key), new.get(key))]
    if refused := [key for key in changed if key not in widened]:
        raise UserError(
            *(
                f"{key}: is {now.get(key, 'not given')} now and was {before.get(key, 'not given')} when the study "
                f"{given.name!r} was created{_hint(old.get(key))}; choose another name (--name), or start again with "
                f"--fresh"
                for key in refused
            )
        )
    return [f"{key} is wider now: {now[key]}; it was {before[key]}" for key in widened]


def _is_widened(before: Domain | None, now: Domain | None) -> bool:
    return isinstance(before, Range) and now is not None and before.is_widened_by(now)


def _hint(before: Domain | None) -> str:
    return " (a range may be widened, nothing else)" if isinstance(before, Range) else ""


def data_settings(config: StudyConfig) -> dict[str, str]:
    """Return, by key, which images a study trains on and validates with; only values of equal ones can be compared."""
    return {key: value for key, value in config.comparability_key().items() if key.startswith("data.")}


def describe_data(config: StudyConfig) -> str:
    """Return which images a study trains on and validates with, as text."""
    data = config.data
    return (
        f"{data.dataset}, {data.training_count:,} training and {data.validation:,} validation images, split seed "
        f"{data.seed}"
    )


def search_settings(config: StudyConfig) -> dict[str, str]:
    """Return all settings of a search by key, as texts: data, budget, space, sampler, pruner, start and execution."""
    tables = config.model_dump(include={"budget", "sampler", "pruner", "execution"}, exclude_none=True)
    settings = config.comparability_key()
    for table, values in tables.items():
        ordered = {name: values[name] for name in sorted(values, key=lambda name: name != "name")}
        settings |= {f"{table}.{name}": value for name, value in _flatten(ordered)}
    settings["start.outside"] = config.start.outside
    settings |= {f"start.recipes.{n}": _format_start(start) for n, start in enumerate(config.start.recipes, 1)}
    groups = ("objective", "data", "budget", "space", "sampler", "pruner", "seed", "start", "execution")
    return {name: settings[name] for group in groups for name in settings if name.partition(".")[0] == group}


def _format_start(start: str | Mapping[str, Any]) -> str:
    return start if isinstance(start, str) else ", ".join(f"{name}={value}" for name, value in _flatten(start))


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of a table and of the tables in it as texts, by dotted name."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", format_value(value)
