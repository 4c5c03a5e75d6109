"""The recipes that a study file starts with, and those that other processes ask for, queued in Optuna's study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.search.suggest import start_params
from fmnist_search.search.trial_attributes import FIXED_VALUES_ATTRIBUTE, REQUEST_ATTRIBUTE, START_ATTRIBUTE


def enqueue_start(study: optuna.Study, config: StudyConfig, source: str, given: Mapping[str, Value]) -> str | None:
    """Queue a start recipe, once per study; values that are not given are sampled.

    Returns a message about how it is tried, or None if the study has had it already.

    Raises:
        UserError: if the values do not make a recipe, or if they lie outside the space and the study refuses that.
    """
    key = json.dumps([source, dict(given)], sort_keys=True)
    params, outside = start_params(config, source, given)
    queued = study.user_attrs.get("started_with", [])
    if key in queued:
        return None
    _enqueue(study, params, given, {START_ATTRIBUTE: source}, is_outside=bool(outside))
    study.set_user_attr("started_with", [*queued, key])
    return f"{source} is tried first{_outside_text(outside)}"


def enqueue_requested(
    study: optuna.Study, config: StudyConfig, source: str, given: Mapping[str, Value], key: str
) -> str:
    """Queue a recipe that another process asks for with a request of this key; values not given are sampled.

    Returns a message about it. A request that is met again, after a process died, changes nothing.

    Raises:
        UserError: as `enqueue_start`.
    """
    params, outside = start_params(config, source, given)
    if all(trial.user_attrs.get(REQUEST_ATTRIBUTE) != key for trial in study.get_trials(deepcopy=False)):
        attributes = {START_ATTRIBUTE: source, REQUEST_ATTRIBUTE: key}
        _enqueue(study, params, given, attributes, is_outside=bool(outside))
    return f"{source} is tried next{_outside_text(outside)}"


def _enqueue(
    study: optuna.Study,
    params: dict[str, Value],
    given: Mapping[str, Value],
    attributes: dict[str, Any],
    *,
    is_outside: bool,
) -> None:
    if is_outside:
        study.enqueue_trial({}, user_attrs={**attributes, FIXED_VALUES_ATTRIBUTE: dict(given)})
    else:
        study.enqueue_trial(params, user_attrs=attributes)


def _outside_text(outside: list[str]) -> str:
    return f", outside the space: {'; '.join(outside)}" if outside else ""
