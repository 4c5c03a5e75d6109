"""A study while it runs in this process: its images, its workers, its run in MLflow, and who hears of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fmnist_search.config.conditional_space import varying_names
from fmnist_search.config.sections import Finalists
from fmnist_search.config.space import NOT_SEARCHABLE
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.config.toml_files import read_recipe
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.errors import UserError
from fmnist_search.execution.backend import Backend, BackendFactory, make_backend
from fmnist_search.execution.capacity import worker_count
from fmnist_search.models.presets import get_preset
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import flatten_tables
from fmnist_search.registry import tags as version_tags
from fmnist_search.registry.versions import get_champion
from fmnist_search.results.champion import Champion
from fmnist_search.results.study import StopReason, StudySummary, TrialRecord, rank_trials
from fmnist_search.results.training import Stopper
from fmnist_search.search.preview import preview_recipes
from fmnist_search.search.study_store import StudyRuntime, StudyStore
from fmnist_search.search.suggest import start_params
from fmnist_search.tracking import metric_names
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.run_logger import NullRunLogger, RunLogger
from fmnist_search.tracking.sender import NullSender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.system_metrics import log_system_metrics
from fmnist_search.training.autotune import autotune
from fmnist_search.training.runtime import resolve_execution
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.jobs import InterruptHandler, JobContext, flush_tracking, open_sender
from fmnist_search.workflows.study import finalists
from fmnist_search.workflows.study.promotion import Promotion
from fmnist_search.workflows.study.run_logging import StudyRunLogger
from fmnist_search.workflows.study.search_loop import SearchLoop
from fmnist_search.workspace import Workspace


@contextlib.contextmanager
def open_session(
    workspace: Workspace,
    config: StudyConfig,
    callback: StudyCallback,
    *,
    fresh: bool = False,
    for_search: bool = False,
    tracked: bool = True,
    backend_factory: BackendFactory = make_backend,
) -> Iterator[Session]:
    """Everything a study needs while it runs: images on the device, its run in MLflow, signals caught.

    Whatever may be missing (images, device, store, recipes to start with) is looked for before anything is written.
    """
    interruption = InterruptHandler()
    with interruption.handle_signals(), store_errors(workspace.tracking_uri):
        source = DataSource.from_workspace(workspace)
        images = load_images(config.data, source)
        execution = study_execution(config)
        with backend_factory(
            execution, _worker_count(config, execution, callback)
        ) as crew:  # while its processes load their libraries, all else is opened
            tracking = MlflowStore(workspace.tracking_uri, config.experiment) if tracked else None
            starts = tuple(_warm_starts(workspace, config, tracking)) if for_search else ()
            ledger = StudyStore.open(workspace.storage_url, config, fresh=fresh)
            if ledger.archived_as:
                workspace.rename_weights(config.name, ledger.archived_as)
            conditions = _stored_runtime(ledger, config, callback)
            if conditions is None:
                crew.wait_until_ready()
                conditions = resolve_runtime(config, execution)
            ledger.runtime = conditions
            crew.configure(conditions.execution)
            if tracking:
                ledger.run_id = run_id = tracking.get_or_create_study_run(config.name, ledger.run_id)
                tracking.save_trials_view(run_id, varying_names(config.space))
            images = images.to(conditions.execution.device)
            with (
                open_sender(workspace, tracking, callback)
                if tracking
                else contextlib.nullcontext(NullSender()) as sender
            ):
                run = RunLogger.existing(sender, ledger.run_id) if tracking and ledger.run_id else NullRunLogger()
                try:
                    desk = JobContext(sender, callback, interruption)
                    session = Session(workspace, ledger, conditions, source, images, tracking, run, crew, desk, starts)
                    session.study_logger.log_start(images, conditions, crew.size)
                    with log_system_metrics(run):
                        yield session
                except BaseException:
                    run.end("FAILED", "failed")
                    raise


def study_execution(config: StudyConfig) -> Execution:
    """How a study asks to be run: on a CPU a trial has a thread of its own unless the study says otherwise.

    Raises:
        UserError: the device is not there, or cannot do what is asked.
    """
    asked = config.execution
    return resolve_execution(asked.device, asked.threads or 1, asked.engine, deterministic=asked.deterministic)


def resolve_runtime(config: StudyConfig, execution: Execution) -> StudyRuntime:
    """How the trials of a study that begins are run: what is fastest here, as far as the study leaves it open."""
    return StudyRuntime(*autotune(execution, config.execution.precision))


def _worker_count(config: StudyConfig, execution: Execution, callback: StudyCallback) -> int:
    guess = config.execution.workers == "auto" and execution.engine == "graph"
    step_bytes = [sketch.step_bytes for sketch in preview_recipes(config, "bfloat16")] if guess else []
    count, remark = worker_count(config.execution.workers, execution, step_bytes)
    if remark:
        callback.on_message(f"{config.name}: {remark}")
    return count


def _warm_starts(
    workspace: Workspace, config: StudyConfig, mlflow_store: MlflowStore | None
) -> Iterator[tuple[str, Mapping[str, Value]]]:
    """The recipes of `[start]`, each with the name under which it is known.

    Raises:
        UserError: there is no such file, study or champion, or the study refuses what its space does not hold.
    """
    for number, entry in enumerate(config.start.recipes, start=1):
        given: Mapping[str, Value]
        if not isinstance(entry, str):
            source, given = f"table {number}", flatten_tables(entry)
            if decided := [name for name in given if name in NOT_SEARCHABLE]:
                raise UserError(
                    *(f"start.recipes: {source}: {name}: is the same in all trials of a study; leave it out, and set "
                      f"{NOT_SEARCHABLE[name]}" for name in decided)
                )  # fmt: skip
        elif entry == "champion":
            source, given = entry, _champion_values(config, mlflow_store)
        elif entry.startswith("preset:"):
            source, given = entry, get_preset(entry.removeprefix("preset:")).recipe.to_flat_dict()
        elif entry.startswith("study:"):
            name = entry.removeprefix("study:")
            leaders = rank_trials(StudyStore.load(workspace.storage_url, name).trial_records())
            if not leaders:
                raise UserError(f"start.recipes: study {name!r} has no completed trial; search it first")
            source, given = f"the best of {name}", leaders[0].recipe.to_flat_dict()
        else:
            source, given = entry, read_recipe(entry).to_flat_dict()
        start_params(config, source, given)
        yield source, given


def _champion_values(config: StudyConfig, mlflow_store: MlflowStore | None) -> dict[str, Value]:
    """The present champion's values, or its first member's; the schedule apart, which is the finalists' own."""
    if mlflow_store is None:
        raise UserError("start.recipes: the champion is in MLflow; leave it out, or leave out --no-tracking")
    name = config.finalists.model_name
    version = get_champion(mlflow_store.client, name)
    if version is None or not version.run_id:
        raise UserError(f"start.recipes: model {name!r} has no champion yet; leave it out, or promote one first")
    trained = version.tags.get(version_tags.MEMBER_RUNS, version.run_id).split(", ")[0]
    recipe = mlflow_store.load_recipe(trained)
    return {key: value for key, value in recipe.to_flat_dict().items() if not key.startswith("schedule.")}


def _stored_runtime(study_store: StudyStore, config: StudyConfig, callback: StudyCallback) -> StudyRuntime | None:
    """The conditions under which a study began, said where they are not the ones asked for.

    Raises:
        UserError: the device that the study began on is not there.
    """
    if study_store.runtime is None:
        return None
    kept, wanted = study_store.runtime.execution, config.execution
    try:
        resolve_execution(kept.device, engine=kept.engine)
    except UserError:
        raise UserError(
            f"study {config.name!r}: began on {kept.device!r}, which cannot be used here; go on where there is one, "
            "choose another name (--name), or begin anew with --fresh"
        ) from None
    other = wanted.device not in ("auto", kept.device) or wanted.threads not in (0, kept.threads)
    if other or wanted.engine != kept.engine:
        how = f"on {kept.device} with {kept.threads} threads and the {kept.engine} engine"
        callback.on_message(f"{config.name} goes on as it began: {how}")
    return study_store.runtime


@dataclass
class Session:
    """A study while it runs in this process."""

    workspace: Workspace
    study_store: StudyStore
    runtime: StudyRuntime
    source: DataSource
    images: Images
    mlflow_store: MlflowStore | None
    run: RunLogger
    pool: Backend
    context: JobContext
    warm_starts: tuple[tuple[str, Mapping[str, Value]], ...]
    study_logger: StudyRunLogger = field(init=False)
    _search_loop: SearchLoop | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.study_logger = StudyRunLogger(self.run, self.study_store, self.context)

    def enqueue_starts(self) -> None:
        """Say what a user might not expect of this study, and queue the recipes it starts with."""
        config = self.study_store.config
        for line in (*config.warnings, *self.study_store.widened_ranges):
            self.context.callback.on_message(f"{config.name}: {line}")
        if left := config.independently_sampled:
            self.context.callback.on_message(
                f"{config.name}: {config.sampler.name} leaves to chance: {', '.join(left)}"
            )
        for source, given in self.warm_starts:
            if said := self.study_store.enqueue_start(source, given):
                self.context.callback.on_message(f"{config.name}: {said}")

    def search(self, stopper: Stopper) -> StopReason:
        """Run trial after trial until something ends the study; says what."""
        self._search_loop = SearchLoop(
            self.study_store, self.images, self.workspace, self.run, self.study_logger, self.context, stopper
        )
        ending = self._search_loop.run(self.pool)
        self.study_logger.log_plots(self.study_store.trial_records())  # while the finalists train
        return ending

    def promote_best(self, settings: Finalists, *, force: bool) -> Champion | None:
        """Train the finalists and register the best; what was chosen from the same before is not trained again."""
        leaders = _distinct_recipes(rank_trials(self.study_store.trial_records()))[: settings.recipes]
        if not leaders or self.mlflow_store is None:
            return None
        fingerprint = finalists.selection_key(leaders, settings)
        known = self.study_store.champion
        if known and known[0] == fingerprint and not force:
            return known[1]
        self.context.callback.on_message(
            f"confirming the best {len(leaders)} of the recipes, {settings.seeds} seeds each, {settings.epochs} epochs"
        )
        champion = Promotion(
            study=self.study_store.config.name,
            seed=self.study_store.config.seed,
            settings=settings,
            source=self.source,
            mlflow_store=self.mlflow_store,
            study_run=self.run,
            images=self.images,
            pool=self.pool,
            context=self.context,
        ).run(leaders)
        if champion:
            self.study_store.save_champion(fingerprint, champion)
            confirmed = champion.confirmed.mean
            self.run.log_metrics(
                {metric_names.TEST_ACCURACY: champion.test.value, metric_names.CONFIRMED_VAL_ACCURACY: confirmed}
            )
        return champion

    def close(self, summary: StudySummary) -> None:
        """Complete the study's run, and wait until MLflow has everything."""
        self.study_logger.close(summary)
        flush_tracking(self.context)
        if self._search_loop:
            self.study_store.tracking_seconds += self._search_loop.tracking_seconds


def _distinct_recipes(leaders: list[TrialRecord]) -> list[TrialRecord]:
    """The best trial of each recipe, in order."""
    best: dict[str, TrialRecord] = {}
    for row in leaders:
        best.setdefault(row.recipe.seed_independent_key(), row)
    return list(best.values())
