"""A study in Optuna's storage, which is what a search relies on, whatever MLflow holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import optuna
from optuna.trial import TrialState as OptunaState

from fmnist_search.config.comparability import check_comparable
from fmnist_search.config.samplers import Grid
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import Importances, RunningTrial, TrialRecord
from fmnist_search.results.training import Decision, EpochReport, Overhead, TrialResult, TrialState
from fmnist_search.search.analysis import importances
from fmnist_search.search.asked_trial import AskedTrial
from fmnist_search.search.objectives import check_directions, create_study, report_refusal, report_value
from fmnist_search.search.one_epoch import SurvivorQueue
from fmnist_search.search.pruners import make_study_pruner
from fmnist_search.search.samplers import is_exhausted, make_study_sampler, random_sampling
from fmnist_search.search.scheduling import Scheduler, make_scheduler, sampler_changes
from fmnist_search.search.start_recipes import enqueue_requested, enqueue_start
from fmnist_search.search.storage import NO_STUDY_YET, NoStorageError, open_storage
from fmnist_search.search.study_attributes import (
    CONFIG_ATTRIBUTE,
    StudyAttributes,
    archive,
    stored_config,
)
from fmnist_search.search.suggest import base_recipe, sample_with_fixed, suggest_recipe, trial_seed
from fmnist_search.search.trial_attributes import (
    DUPLICATE_ATTRIBUTE,
    FIXED_VALUES_ATTRIBUTE,
    OUTCOME_ATTRIBUTE,
    RECIPE_ATTRIBUTE,
    RUN_KEY_ATTRIBUTE,
    SEED_ATTRIBUTE,
    WORKER_LOST_ATTRIBUTE,
    TrialRecords,
    duplicate_outcome_attribute,
    outcome_attribute,
    running_trials,
    trained_until,
    trial_record,
)
from fmnist_search.search.unfinished_trials import FindOutcome, UnfinishedTrials


class StudyStore(StudyAttributes):
    """One study in Optuna's storage: its trials and what else is stored about it.

    `changes` has a line for each change of the study file that matters to the trials that there are; `archived_as` is
    the new name of an earlier study of the same name. Sampler and pruner are created on first use, and not for reading.
    """

    def __init__(self, study: optuna.Study, config: StudyConfig):
        super().__init__(study)
        self.config = config
        self.archived_as: str | None = None
        self.changes: list[str] = []
        self._unfinished = UnfinishedTrials(study)
        self._records = TrialRecords(study)
        self._survivors = SurvivorQueue(study, self._records, config.pruner, config.budget)
        self._made_scheduler: Scheduler | None = None

    @classmethod
    def open(cls, url: str, config: StudyConfig, *, fresh: bool = False) -> StudyStore:
        """Return the study with the name of this config, created if it does not exist.

        With `fresh`, a study of that name is archived under another name first.

        Raises:
            UserError: if the stored study differs in what must not change, with a line for each key that differs; if
                the storage cannot be opened; if the sampler needs a package that is not installed.
        """
        make_study_sampler(config)  # it may need a package that is not installed
        return cls.open_in(open_storage(url), config, fresh=fresh)

    @classmethod
    def open_in(
        cls,
        storage: optuna.storages.BaseStorage,
        config: StudyConfig,
        *,
        fresh: bool = False,
        find_outcome: FindOutcome = lambda _: None,
    ) -> StudyStore:
        """Return the study as `open` does, in a storage that is open. One that is archived is recovered first."""
        archived_as = None
        if fresh and config.name in optuna.get_all_study_names(storage):
            former = optuna.load_study(study_name=config.name, storage=storage)
            UnfinishedTrials(former).recover(find_outcome)
            archived_as = archive(storage, config.name)
        study = create_study(storage, config)
        store = cls._continue(study, config)
        store._with_sampler()
        study.set_user_attr(CONFIG_ATTRIBUTE, store.config.to_toml())
        store.archived_as = archived_as
        return store

    @classmethod
    def find(cls, url: str, config: StudyConfig, *, fresh: bool = False) -> StudyStore | None:
        """Return the study that `open` would continue, or None if it would create one. This changes no study.

        Raises:
            UserError: if `open` would raise it.
        """
        make_study_sampler(config)  # it may need a package that is not installed
        if fresh:
            return None
        try:
            return cls.find_in(open_storage(url, create=False), config)
        except NoStorageError:
            return None

    @classmethod
    def find_in(cls, storage: optuna.storages.BaseStorage, config: StudyConfig) -> StudyStore | None:
        """Return the study as `find` does, in a storage that is open."""
        if config.name not in optuna.get_all_study_names(storage):
            return None
        return cls._continue(optuna.load_study(study_name=config.name, storage=storage), config)

    @classmethod
    def _continue(cls, study: optuna.Study, config: StudyConfig) -> StudyStore:
        store = cls(study, config.continuing(stored := stored_config(study)))
        store.changes = [*check_comparable(stored, config), *sampler_changes(study, stored, config)] if stored else []
        check_directions(study, config)
        return store

    @classmethod
    def load(cls, url: str, name: str | None = None) -> StudyStore:
        """Return an existing study, by default the one that was created last.

        Raises:
            UserError: if there is no such study; if its search has only just created it, or was killed while doing so;
                if the storage cannot be opened.
        """
        storage = open_storage(url, create=False)
        if name is None:
            names = optuna.get_all_study_names(storage)
            if not names:
                raise UserError(f"{url}: {NO_STUDY_YET}")
            name = names[-1]
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            names = optuna.get_all_study_names(storage)
            remedy = did_you_mean(name, names) if names else "there is none yet; run `fmnist-search search STUDY.toml`"
            raise UserError(f"study {name!r}: does not exist here; {remedy}") from None
        config = stored_config(study)
        if config is None:
            raise UserError(f"study {name!r}: has only just been created; try again in a moment, or search it again")
        return cls(study, config)

    @staticmethod
    def study_names(url: str) -> list[str]:
        """Return the names of the studies of a storage, oldest first; none without a storage.

        Raises:
            UserError: if there is a storage that cannot be opened.
        """
        try:
            return list(optuna.get_all_study_names(open_storage(url, create=False)))
        except NoStorageError:
            return []

    # ------------------------------------------------------------------------------ the study

    def importances(self) -> Importances:
        """Return the importance of each hyperparameter; UserError if too few trials have completed."""
        return importances(self._study)

    def trial_records(self) -> list[TrialRecord]:
        """Return a record of each trial that has ended, by number."""
        return self._records.all()

    def running_trials(self, since: float) -> list[RunningTrial]:
        """Return the trials that have begun since a Unix time and have not ended, by number."""
        return running_trials(self._study, since)

    # -------------------------------------------------------------------------------- its search

    @property
    def _base(self) -> Recipe:
        assert self.runtime is not None, "the runtime is set before the first trial"
        return base_recipe(self.config, self.runtime.precision)

    def _with_sampler(self) -> optuna.Study:
        """Return the study with its sampler and its pruner, which are created on the first call."""
        if not self._made_scheduler:
            self._study.sampler = make_study_sampler(self.config)
            self._study.pruner = make_study_pruner(self.config)
            self._made_scheduler = make_scheduler(self._study, self.config)
        return self._study

    @property
    def _scheduler(self) -> Scheduler:
        self._with_sampler()
        assert self._made_scheduler
        return self._made_scheduler

    @property
    def is_exhausted(self) -> bool:
        """Whether a grid has no recipe left."""
        if not isinstance(self.config.sampler, Grid) or not is_exhausted(self._with_sampler()):
            return False
        if self._survivors.next_survivor() is not None:
            return False
        return not self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,))

    @property
    def waits_for_running(self) -> bool:
        """Whether the next trial cannot be chosen before the running ones have ended."""
        return self._survivors.waits_for_running

    @property
    def resumes_next(self) -> bool:
        """Whether `ask` returns a paused trial, which goes on, in place of a new one."""
        return self._scheduler.next_paused() is not None

    def filter_recipes(self, accepts: Callable[[Recipe], bool]) -> None:
        """Let the sampler propose only recipes that are accepted, if it can: freeze-thaw does."""
        self._scheduler.filter_recipes(accepts)

    def paused_to_end(self) -> list[int]:
        """Return the numbers of the paused trials that do not go on after the end of the search."""
        return self._scheduler.paused_to_end()

    def enqueue_start(self, source: str, given: Mapping[str, Value]) -> str | None:
        """Queue a start recipe, once per study: `search.start_recipes.enqueue_start`."""
        return enqueue_start(self._study, self.config, source, given)

    def enqueue_requested(self, source: str, given: Mapping[str, Value], key: str) -> str:
        """Queue a recipe that another process asks for: `search.start_recipes.enqueue_requested`."""
        return enqueue_requested(self._study, self.config, source, given, key)

    def ask(self, *, at_random: bool = False) -> AskedTrial:
        """Return the next trial: a new one, or one that goes on with its recipe and its seed.

        Trials that were interrupted go on first. When a paused one goes on, the scheduler decides. `at_random` samples
        a new one at random.
        """
        study = self._with_sampler()
        with self._transaction(), random_sampling(study, self.config, enabled=at_random):
            self._survivors.enqueue_next()
            paused = self._scheduler.next_paused()
            return self._start(study.ask() if paused is None else self._unfinished.resume(paused))

    def _start(self, trial: optuna.Trial) -> AskedTrial:
        self._survivors.add_running(trial)
        attributes = trial.user_attrs
        if stored := attributes.get(RECIPE_ATTRIBUTE):
            curve = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
            return AskedTrial.create(trial, Recipe().replace(stored), dict(curve))
        seed = attributes.get(SEED_ATTRIBUTE, trial_seed(self.config.seed, trial.number))
        if FIXED_VALUES_ATTRIBUTE in attributes:
            recipe = sample_with_fixed(self.config.space, self._base, attributes[FIXED_VALUES_ATTRIBUTE], seed)
        else:
            recipe = suggest_recipe(trial, self.config.space, self._base, seed)
        trial.set_user_attr(RECIPE_ATTRIBUTE, recipe.to_flat_dict())
        return AskedTrial.create(trial, recipe, {})

    def save_run_key(self, trial: AskedTrial, run_key: str) -> None:
        """Store the key of a trial's run, before the run is created."""
        trial.optuna_trial.set_user_attr(RUN_KEY_ATTRIBUTE, run_key)

    def decide(self, trial: AskedTrial, report: EpochReport) -> Decision:
        """Report an epoch, unless it was reported before; return whether the trial continues, is pruned or is paused.

        This checks the lease, also if nothing is written.
        """
        assert report.val_accuracy is not None, "a study validates its trials"
        if report.epoch in trial.curve:
            self.check_lease()
        with self._transaction():
            if report.epoch not in trial.curve:
                report_value(trial.optuna_trial, report.val_accuracy, report.epoch)
            return self._scheduler.decide(trial.optuna_trial, report.epoch)

    def tell(
        self,
        trial: AskedTrial,
        result: TrialResult,
        run_id: str,
        overhead: Overhead = Overhead(),  # noqa: B008
    ) -> TrialRecord:
        """Store how the training of a trial ended; return its record.

        A trial that was interrupted waits to go on, and is the next that is asked for. One that is paused waits for
        `resume`.
        """
        self._survivors.remove_running(trial.number)
        before = trial.optuna_trial.user_attrs.get(OUTCOME_ATTRIBUTE)
        outcome = {**outcome_attribute(result, run_id, overhead), "trained_until": trained_until(before, result)}
        with self._transaction():
            if result.state is TrialState.INTERRUPTED:
                return trial_record(self._unfinished.put_back(trial.number, outcome), trial.recipe)
            if result.state is TrialState.PAUSED:
                return trial_record(self._unfinished.pause(trial.number, outcome), trial.recipe)
            if result.state is TrialState.REFUSED:
                report_refusal(trial.optuna_trial, result.mult_adds)
            trial.optuna_trial.set_user_attr(OUTCOME_ATTRIBUTE, outcome)
            return self._end(trial, result.state, result.value)

    def _end(self, trial: AskedTrial, state: TrialState, value: float | None) -> TrialRecord:
        self._with_sampler()
        is_fixed = FIXED_VALUES_ATTRIBUTE in trial.optuna_trial.user_attrs
        ended = self._unfinished.end(trial.number, state, value, is_fixed=is_fixed)
        record = trial_record(ended, trial.recipe)
        self._survivors.add_ended(record)
        return record

    def mark_worker_lost(self, trial: AskedTrial, epochs: int) -> None:
        """Store that a worker was lost with this trial after so many of its epochs."""
        trial.optuna_trial.set_user_attr(WORKER_LOST_ATTRIBUTE, epochs)

    def resume(self, number: int) -> AskedTrial:
        """Return a paused trial, which goes on.

        Raises:
            ValueError: if the trial is not paused.
        """
        self._with_sampler()
        return self._start(self._unfinished.resume(number))

    def recover(self, find_outcome: FindOutcome = lambda _: None) -> list[int]:
        """Set right the trials that a driver has left running when it died; return the numbers of those that go on.

        A trial whose training had ended is told its outcome, which may be stored with its run only: `find_outcome`
        returns it by the key of the run. Nobody else may drive the study.
        """
        self._with_sampler()
        recovered = self._unfinished.recover(find_outcome)
        self._survivors.count_again()
        return recovered

    def tell_duplicate(self, trial: AskedTrial, original: TrialRecord) -> TrialRecord:
        """Store for a trial the result of an earlier equal one, so that the sampler learns of it; return its record."""
        assert original.value is not None, "only a trial with a value answers others"
        handle = trial.optuna_trial
        self._survivors.remove_running(trial.number)
        with self._transaction():
            handle.set_user_attr(DUPLICATE_ATTRIBUTE, original.number)
            handle.set_user_attr(OUTCOME_ATTRIBUTE, duplicate_outcome_attribute(original))
            if original.state is not TrialState.COMPLETED or FIXED_VALUES_ATTRIBUTE in handle.user_attrs:
                report_value(handle, original.value, original.epochs)
            return self._end(trial, original.state, original.value)
