"""Which trial the next epoch goes to: what Optuna's pruner decides, or freeze-thaw, which pauses and resumes trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import optuna
from optuna.trial import TrialState as OptunaState

from fmnist_search.config.samplers import FreezeThaw
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision
from fmnist_search.search.objectives import pruner_prunes
from fmnist_search.search.pruners import StartupTrials
from fmnist_search.search.suggest import base_recipe, suggest_recipe
from fmnist_search.search.trial_attributes import PAUSED_ATTRIBUTE, PREDICTION_ATTRIBUTE

if TYPE_CHECKING:
    from fmnist_search.search.candidates import Params
    from fmnist_search.search.freeze_thaw_sampler import FreezeThawSampler


class Scheduler:
    """Decides with the pruner of a study whether a trial goes on after an epoch.

    Trials that freeze-thaw has paused in an earlier search of the study go on before new ones begin. What a user's
    stopper has paused stays so until `StudyStore.resume` is called.
    """

    def __init__(self, study: optuna.Study, config: StudyConfig):
        self._study = study
        self._startup_trials = StartupTrials(config.pruner, config.budget.epochs)
        self._left_paused: list[int] | None = None

    def decide(self, trial: optuna.Trial, epoch: int) -> Decision:
        """Return whether a trial continues after an epoch that it has reported, is pruned, or is paused."""
        is_pruned = pruner_prunes(trial) and self._startup_trials.allow_pruning(self._study, epoch)
        return Decision.PRUNE if is_pruned else Decision.CONTINUE

    def next_paused(self) -> int | None:
        """Return the number of the paused trial that goes on next, before any new one; None if a new one is next."""
        if self._left_paused is None:  # looked for once: while this scheduler decides, no more of them are paused
            self._left_paused = paused_by_freeze_thaw(self._study)
        while self._left_paused:
            trial = self._study.get_trials(deepcopy=False)[self._left_paused[0]]
            if trial.user_attrs.get(PAUSED_ATTRIBUTE) is not None:
                return trial.number
            del self._left_paused[0]
        return None

    def paused_to_end(self) -> list[int]:
        """Return the numbers of the paused trials that do not go on after the end of the search."""
        return []

    def filter_recipes(self, accepts: Callable[[Recipe], bool]) -> None:
        """Let the sampler propose accepted recipes only, if it can choose them."""


class FreezeThawScheduler(Scheduler):
    """Lets the sampler choose after each epoch, and when a worker is free, which trial goes on."""

    def __init__(self, study: optuna.Study, config: StudyConfig, sampler: FreezeThawSampler):
        super().__init__(study, config)
        self._config = config
        self._sampler = sampler
        self._last_epoch = config.budget.epochs

    def decide(self, trial: optuna.Trial, epoch: int) -> Decision:
        """Return PAUSE if another trial, or a new one, promises more for the next epoch."""
        if epoch >= self._last_epoch or not trial.params:
            return Decision.CONTINUE
        if not self._has_queued and self._sampler.decide(self._study, running=trial.number).trial == trial.number:
            return Decision.CONTINUE
        prediction = self._sampler.predict(self._study, trial.number)
        trial.set_user_attr(PREDICTION_ATTRIBUTE, list(dataclasses.astuple(prediction)) if prediction else [])
        return Decision.PAUSE

    def next_paused(self) -> int | None:
        """Return the number of the paused trial that promises more than a new one; None if none does."""
        return None if self._has_queued else self._sampler.decide(self._study).trial

    @property
    def _has_queued(self) -> bool:
        """Whether trials are queued, such as start recipes. They come first, and none waits for the end of another."""
        return bool(self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,)))

    def paused_to_end(self) -> list[int]:
        """Return the numbers of all trials that this scheduler has paused."""
        return paused_by_freeze_thaw(self._study)

    def filter_recipes(self, accepts: Callable[[Recipe], bool]) -> None:
        """Let the sampler compare accepted recipes only with the trials that have begun."""
        base, space = base_recipe(self._config, "float32"), self._config.space

        def accepts_params(params: Params) -> bool:
            trial = optuna.trial.FixedTrial(dict(params))
            return accepts(suggest_recipe(trial, space, base, seed=0))

        self._sampler.accepts = accepts_params


def make_scheduler(study: optuna.Study, config: StudyConfig) -> Scheduler:
    """Return the scheduler of a study, whose sampler and pruner have been created."""
    if isinstance(config.sampler, FreezeThaw):
        return FreezeThawScheduler(study, config, cast("FreezeThawSampler", study.sampler))
    return Scheduler(study, config)


def paused_by_freeze_thaw(study: optuna.Study) -> list[int]:
    """Return the numbers of the trials that freeze-thaw has paused."""
    return [
        trial.number
        for trial in study.get_trials(deepcopy=False, states=(OptunaState.RUNNING, OptunaState.PRUNED))
        if trial.user_attrs.get(PAUSED_ATTRIBUTE) is not None and PREDICTION_ATTRIBUTE in trial.user_attrs
    ]


def sampler_changes(study: optuna.Study, stored: StudyConfig, config: StudyConfig) -> list[str]:
    """Return what a user may not expect of a study that is continued with the sampler of `config`, or with its own.

    It keeps its own if `config` names none.
    """
    if not config.names_search:
        own = f"{stored.sampler.name!r} and the pruner {stored.pruner.name!r}"
        remedy = f"`--sampler {config.sampler.name}` changes that"
        same = config.sampler.name == stored.sampler.name
        return [] if same else [f"the study goes on with {own}, as it was searched so far; {remedy}"]
    had, has = isinstance(stored.sampler, FreezeThaw), isinstance(config.sampler, FreezeThaw)
    if has and not had:
        return [f"freeze-thaw goes on with this study of {stored.sampler.name!r}, and learns from all its trials"]
    if had and not has and (count := len(paused_by_freeze_thaw(study))):
        return [f"{count} trials that freeze-thaw has paused go on before {config.sampler.name!r} chooses new ones"]
    return []
