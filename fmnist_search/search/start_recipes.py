"""The recipes that a study file starts with, queued in Optuna's study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.search.suggest import start_params
from fmnist_search.search.trial_attributes import FIXED_VALUES_ATTRIBUTE, START_ATTRIBUTE


def enqueue_start(study: optuna.Study, config: StudyConfig, source: str, given: Mapping[str, Value]) -> str | None:
    """Queue a start recipe, once per study; values that are not given are sampled.

    Returns a message about how it is tried, or None if the study has had it already.

    Raises:
        UserError: if the values do not make a recipe, or if they lie outside the space and the study refuses that.
    """
    params, outside = start_params(config, source, given)
    key = json.dumps([source, dict(given)], sort_keys=True)
    queued = study.user_attrs.get("started_with", [])
    if key in queued:
        return None
    attributes: dict[str, Any] = {START_ATTRIBUTE: source}
    if outside:
        study.enqueue_trial({}, user_attrs={**attributes, FIXED_VALUES_ATTRIBUTE: dict(given)})
    else:
        study.enqueue_trial(params, user_attrs=attributes)
    study.set_user_attr("started_with", [*queued, key])
    return f"{source} is tried first" + (f", outside the space: {'; '.join(outside)}" if outside else "")
