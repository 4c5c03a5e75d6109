"""Which changes of its study file a stored study accepts: its trials must stay comparable."""

from __future__ import annotations

from fmnist_search.config.domain import Domain, Range
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError


def check_comparable(stored: StudyConfig, given: StudyConfig) -> list[str]:
    """Return a line for each range that is wider in the given config than in the stored one.

    Raises:
        UserError: if anything else differs that would make trials incomparable, with a line for each key.
    """
    before, now = stored.comparability_key(), given.comparability_key()
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
