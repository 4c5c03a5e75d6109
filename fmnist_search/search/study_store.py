"""A study's trials as Optuna keeps them: the truth of a search, whatever MLflow shows."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import TrialState as OptunaState

from fmnist_search.config.sections import OneEpoch
from fmnist_search.config.space import Domain, Range
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError, nearest
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Execution, Recipe
from fmnist_search.results.study import (
    Champion,
    EpochReport,
    Importances,
    Overhead,
    State,
    TrialResult,
    TrialRow,
)
from fmnist_search.search.analysis import importances
from fmnist_search.search.samplers import SURVIVOR_OF, GridOfRecipes, heed_pruner, make_pruner, make_sampler
from fmnist_search.search.storage import open_storage
from fmnist_search.search.suggest import base_recipe, draw_around, parameters_of, sample, trial_seed
from fmnist_search.search.trial_attributes import (
    OUTCOME,
    RECIPE,
    champion_from,
    champion_to,
    has_ended,
    outcome_of,
    outcome_of_duplicate,
    row_of,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)

STORED = (OptunaState.COMPLETE, OptunaState.PRUNED, OptunaState.FAIL)

CONFIG = "config"
"""Attribute of a study: its file, as it was resolved."""

LOST = "lost"
"""Attribute of a trial that is tried again since the worker of its first attempt died."""

GIVEN = "given"
"""Attribute of a trial whose recipe the space does not hold, as it was given."""
KEPT_ON_RETRY = ("start", GIVEN, SURVIVOR_OF, LOST)


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How the trials of a study are run: decided when it begins, and kept, so that they stay comparable."""

    execution: Execution
    precision: str


class Ledger:
    """One study in Optuna's storage."""

    def __init__(self, study: optuna.Study, config: StudyConfig):
        self._study = study
        self.config = config
        self.put_aside: str | None = None
        self.widened: list[str] = []
        self._candidates: set[int] = set()  # that run: whatever is trained for the first time
        study.sampler = make_sampler(config.sampler, config.seed, config.space)
        study.pruner = make_pruner(config.pruner, config.budget.epochs)

    @classmethod
    def open(cls, url: str, config: StudyConfig, *, fresh: bool = False) -> Ledger:
        """The study of that name, made where it is missing.

        With `fresh`, an earlier one is put aside first: `put_aside` is its new name. Ranges may be wider than those
        the study began with: `widened` says which are.

        Raises:
            UserError: the stored study searches something else: one line for each key that differs.
        """
        storage = open_storage(url)
        aside = None
        if fresh and config.name in optuna.get_all_study_names(storage):
            aside = f"{config.name} until {datetime.now():%Y-%m-%d %H.%M.%S.%f}"
            optuna.copy_study(
                from_study_name=config.name, from_storage=storage, to_storage=storage, to_study_name=aside
            )
            optuna.delete_study(study_name=config.name, storage=storage)
            copy = optuna.load_study(study_name=aside, storage=storage)
            if CONFIG in copy.user_attrs:
                copy.set_user_attr(CONFIG, _stored_config(copy).model_copy(update={"name": aside}).to_toml())
        study = optuna.create_study(storage=storage, study_name=config.name, direction="maximize", load_if_exists=True)
        widened = _differences(_stored_config(study), config) if CONFIG in study.user_attrs else []
        ledger = cls(study, config)
        study.set_user_attr(CONFIG, config.to_toml())
        ledger.widened = widened
        ledger.put_aside = aside
        return ledger

    @classmethod
    def find(cls, url: str, name: str) -> Ledger:
        """A study that is there already.

        Raises:
            UserError: it is not; the nearest name is. Or its search is only just making it, or was killed over that.
        """
        storage = open_storage(url, create=False)
        names = optuna.get_all_study_names(storage)
        if name not in names:
            known = nearest(name, names) if names else "there is none yet; run `fmnist-search search STUDY.toml`"
            raise UserError(f"study {name!r}: does not exist here; {known}")
        study = optuna.load_study(study_name=name, storage=storage)
        if CONFIG not in study.user_attrs:
            raise UserError(f"study {name!r}: has only just been made; look again in a moment, or search it again")
        return cls(study, _stored_config(study))

    @staticmethod
    def names(url: str) -> list[str]:
        """The studies of a storage, the one that was begun last at the end."""
        return list(optuna.get_all_study_names(open_storage(url, create=False)))

    # ------------------------------------------------------------------------------ of the study

    @property
    def conditions(self) -> Conditions | None:
        """How its trials are run; None before that was decided."""
        stored = self._study.user_attrs.get("conditions")
        return Conditions(Execution(**stored["execution"]), stored["precision"]) if stored else None

    @conditions.setter
    def conditions(self, conditions: Conditions) -> None:
        self._study.set_user_attr("conditions", dataclasses.asdict(conditions))

    @property
    def run_id(self) -> str | None:
        """The study's run in MLflow."""
        run_id: str | None = self._study.user_attrs.get("mlflow_run_id")
        return run_id

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._study.set_user_attr("mlflow_run_id", run_id)

    @property
    def searched_seconds(self) -> float:
        """How long the study has searched so far, in all its sessions."""
        stored = self._study.user_attrs.get("searched_seconds")
        return sum(row.seconds for row in self.rows()) if stored is None else float(stored)

    @searched_seconds.setter
    def searched_seconds(self, seconds: float) -> None:
        self._study.set_user_attr("searched_seconds", seconds)

    @property
    def tracking_seconds(self) -> float:
        """How long MLflow took to keep the record of the trials, beside their training."""
        return float(self._study.user_attrs.get("tracking_seconds", 0.0))

    @tracking_seconds.setter
    def tracking_seconds(self, seconds: float) -> None:
        self._study.set_user_attr("tracking_seconds", seconds)

    @property
    def champion(self) -> tuple[str, Champion] | None:
        """The last champion, and the fingerprint of what it was chosen from."""
        stored = self._study.user_attrs.get("champion")
        return (stored["fingerprint"], champion_from(stored)) if stored else None

    def crown(self, fingerprint: str, champion: Champion) -> None:
        """Remember a champion, so that the same finalists are not trained again."""
        self._study.set_user_attr("champion", {"fingerprint": fingerprint, **champion_to(champion)})

    def importances(self) -> Importances:
        """Which hyperparameters decide; UserError where too few trials have completed."""
        return importances(self._study)

    @property
    def is_exhausted(self) -> bool:
        """Whether a grid has no recipe left."""
        if not self._has_empty_grid() or self._next_survivor() is not None:
            return False
        return not self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,))

    # ----------------------------------------------------------------------------- of its trials

    def start_with(self, source: str, given: Mapping[str, Value]) -> str | None:
        """Try a recipe before the sampler is asked, once a study; what is not given of it is drawn.

        Says how it will be tried, or None where it stands in the study already.

        Raises:
            UserError: it is no recipe, or the space does not hold it and the study refuses such recipes.
        """
        params, outside = parameters_of_start(self.config, source, given)
        key = json.dumps([source, dict(given)], sort_keys=True)
        queued = self._study.user_attrs.get("started_with", [])
        if key in queued:
            return None
        attributes: dict[str, Any] = {"start": source}
        if outside:
            self._study.enqueue_trial({}, user_attrs={**attributes, GIVEN: dict(given)})
        else:
            self._study.enqueue_trial(params, user_attrs=attributes)
        self._study.set_user_attr("started_with", [*queued, key])
        return f"{source} is tried first" + (f", outside the space: {'; '.join(outside)}" if outside else "")

    def rows(self) -> list[TrialRow]:
        """All trials that ended, in their order."""
        return [row_of(trial) for trial in self._study.get_trials(deepcopy=False, states=STORED) if has_ended(trial)]

    def ask(self) -> tuple[optuna.Trial, Recipe]:
        """The next trial and what it is to train; an interrupted trial comes again first, with its seed."""
        assert self.conditions is not None
        self._queue_a_survivor()
        trial = self._study.ask()
        if SURVIVOR_OF not in trial.user_attrs:
            self._candidates.add(trial.number)
        base = base_recipe(self.config, self.conditions.precision)
        attributes = trial.user_attrs
        seed = attributes.get("seed", trial_seed(self.config.seed, trial.number))
        if GIVEN in attributes:
            recipe = draw_around(self.config.space, base, attributes[GIVEN], seed)
        else:
            recipe = sample(trial, self.config.space, base, seed)
        trial.set_user_attr(RECIPE, recipe.flat())
        return trial, recipe

    def _queue_a_survivor(self) -> None:
        """Under the one-epoch rule: the last trials of the budget are the best candidates, with their seeds."""
        survivor = self._next_survivor()
        waiting = self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,))
        if survivor is not None and not waiting:
            candidate = self._study.get_trials(deepcopy=False)[survivor.number]
            kept = {name: value for name, value in candidate.user_attrs.items() if name == GIVEN}
            attributes = {**kept, "seed": survivor.recipe.seed, SURVIVOR_OF: survivor.number}
            self._study.enqueue_trial(candidate.params, user_attrs=attributes)

    @property
    def must_wait(self) -> bool:
        """Whether what is asked next depends on trials that still run: the best candidates of the one-epoch rule."""
        return bool(self._candidates) and self._has_all_candidates(len(self._candidates))

    def _has_all_candidates(self, running: int) -> bool:
        pruner, limit = self.config.pruner, self.config.budget.trials
        if not isinstance(pruner, OneEpoch) or limit is None:
            return False
        return len(self._candidate_rows()) + running >= limit - pruner.survivors or self._has_empty_grid()

    def _candidate_rows(self) -> list[TrialRow]:
        return [row for row in self.rows() if row.duplicate_of is None and row.is_final]

    def _next_survivor(self) -> TrialRow | None:
        if not self._has_all_candidates(0):
            return None
        rows = self._candidate_rows()
        trials = self._study.get_trials(deepcopy=False)
        promoted = {trial.user_attrs.get(SURVIVOR_OF) for trial in trials}
        left = [row for row in rows if row.state is State.PRUNED and row.number not in promoted]
        candidates = [row for row in left if SURVIVOR_OF not in trials[row.number].user_attrs]
        return max(candidates, key=lambda row: (row.value or 0.0, -row.number), default=None)

    def _has_empty_grid(self) -> bool:
        sampler = self._study.sampler
        return isinstance(sampler, GridOfRecipes) and sampler.is_exhausted(self._study)

    def should_prune(self, trial: optuna.Trial, report: EpochReport) -> bool:
        """Report an epoch, and say whether the trial is to end here."""
        assert report.val_accuracy is not None
        trial.report(report.val_accuracy, report.epoch)
        if not trial.should_prune():
            return False
        trials = self._study.get_trials(deepcopy=False)
        return heed_pruner(trials, self.config.pruner, report.epoch, self.config.budget.epochs)

    def tell(
        self,
        trial: optuna.Trial,
        result: TrialResult,
        run_id: str,
        overhead: Overhead = Overhead(),  # noqa: B008
        *,
        lost: bool = False,
    ) -> TrialRow:
        """Write down how a trial ended; one that was interrupted is put first in the queue.

        So is, once, one whose worker was `lost`.
        """
        self._candidates.discard(trial.number)
        comes_again = result.state is State.INTERRUPTED or (lost and LOST not in trial.user_attrs)
        trial.set_user_attr(OUTCOME, outcome_of(result, run_id, overhead, comes_again=comes_again))
        if GIVEN in trial.user_attrs:
            # Optuna would take a trial without parameters for a sign that nothing is shared by all.
            told = self._study.tell(trial, state=OptunaState.FAIL)
        elif result.state is State.COMPLETED:
            told = self._study.tell(trial, result.value)
        elif result.state is State.PRUNED:
            told = self._study.tell(trial, state=OptunaState.PRUNED)
        else:
            told = self._study.tell(trial, state=OptunaState.FAIL)
        if comes_again:
            kept = {name: value for name, value in trial.user_attrs.items() if name in KEPT_ON_RETRY}
            kept |= {LOST: True} if lost else {}
            seed = trial.user_attrs[RECIPE]["seed"]
            self._study.enqueue_trial(trial.params, user_attrs={**kept, "seed": seed, "retry_of": trial.number})
        return row_of(told)

    def tell_duplicate(self, trial: optuna.Trial, known: TrialRow) -> TrialRow:
        """Answer a trial from an earlier equal one, so that the sampler learns that it asked again."""
        self._candidates.discard(trial.number)
        trial.set_user_attr("duplicate_of", known.number)
        trial.set_user_attr(OUTCOME, outcome_of_duplicate(known))
        assert known.value is not None
        if known.state is State.COMPLETED and GIVEN not in trial.user_attrs:
            return row_of(self._study.tell(trial, known.value))
        trial.report(known.value, known.epochs)
        state = OptunaState.FAIL if GIVEN in trial.user_attrs else OptunaState.PRUNED
        return row_of(self._study.tell(trial, state=state))


def parameters_of_start(
    config: StudyConfig, source: str, given: Mapping[str, Value]
) -> tuple[dict[str, Value], list[str]]:
    """Optuna's parameters of a recipe to start with, and what of it the space does not hold.

    Raises:
        UserError: it is no recipe, or the space does not hold it and the study refuses such recipes.
    """
    try:
        params, outside = parameters_of(config.space, base_recipe(config, "float32"), given)
    except UserError as error:
        raise UserError(*(f"start.recipes: {source}: {line}" for line in error.lines)) from None
    if outside and config.start.outside == "refuse":
        remedy = "widen the space, or try it all the same with start.outside = 'try'"
        raise UserError(*(f"start.recipes: {source}: {reason}; {remedy}" for reason in outside))
    return params, outside


def _stored_config(study: optuna.Study) -> StudyConfig:
    return StudyConfig.from_dict(tomllib.loads(study.user_attrs[CONFIG]))


def _differences(stored: StudyConfig, given: StudyConfig) -> list[str]:
    """Which ranges were widened; UserError for whatever else makes the trials incomparable."""
    before, now = stored.identity(), given.identity()
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    old, new = dict(stored.domains()), dict(given.domains())
    widened = [key for key in changed if _is_widened(old.get(key), new.get(key))]
    if refused := [key for key in changed if key not in widened]:
        raise UserError(
            *(
                f"{key}: is {now.get(key, 'not given')} now and was {before.get(key, 'not given')} when the study "
                f"{given.name!r} began{_hint(old.get(key))}; choose another name (--name), or begin anew with --fresh"
                for key in refused
            )
        )
    return [f"{key} is wider now: {now[key]}; it was {before[key]}" for key in widened]


def _is_widened(before: Domain | None, now: Domain | None) -> bool:
    return isinstance(before, Range) and now is not None and before.is_widened_by(now)


def _hint(before: Domain | None) -> str:
    return " (a range may be widened, nothing else)" if isinstance(before, Range) else ""
