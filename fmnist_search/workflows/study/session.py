"""A study while it runs in this process: its images, its workers, its run in MLflow, and who hears of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fmnist_search.config.sections import Finalists
from fmnist_search.config.space import NOT_SEARCHABLE
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.config.toml_files import read_recipe
from fmnist_search.data.loading import Images, Source, prepare
from fmnist_search.errors import UserError
from fmnist_search.execution.pool import Crew, fitting
from fmnist_search.models.presets import preset_named
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Execution, values_of
from fmnist_search.registry import versions
from fmnist_search.results.study import Champion, Ending, Listener, Observer, StudySummary, TrialRow, leaders_of
from fmnist_search.search.preview import sketches
from fmnist_search.search.samplers import drawn_at_random
from fmnist_search.search.study_store import Conditions, Ledger, parameters_of_start
from fmnist_search.search.suggest import searched
from fmnist_search.tracking.run_logger import Run
from fmnist_search.tracking.sender import Nobody
from fmnist_search.tracking.store import Tracking, reaching
from fmnist_search.training.autotune import resolve_execution, tune
from fmnist_search.workflows.jobs import Desk, Interruption, see_off, sending
from fmnist_search.workflows.study import finalists
from fmnist_search.workflows.study.promotion import Promotion
from fmnist_search.workflows.study.run_logging import Logbook, system_metrics
from fmnist_search.workflows.study.search_loop import Search
from fmnist_search.workspace import Home, image_cache


@contextlib.contextmanager
def open_session(
    home: Home,
    config: StudyConfig,
    data_dir: str | Path | None,
    listener: Listener,
    *,
    fresh: bool = False,
    searching: bool = False,
    tracked: bool = True,
) -> Iterator[Session]:
    """Everything a study needs while it runs: images on the device, its run in MLflow, signals caught.

    Whatever may be missing (images, device, store, recipes to start with) is looked for before anything is written.
    """
    interruption = Interruption()
    with interruption.watching(), reaching(home.tracking_uri):
        source = Source(image_cache(), Path(data_dir) if data_dir else None)
        images = prepare(config.data, source)
        execution = execution_of(config)
        with _crew(config, execution, listener) as crew:  # while its processes load their libraries, all else is opened
            tracking = Tracking(home.tracking_uri, config.experiment) if tracked else None
            starts = tuple(_starts(home, config, tracking)) if searching else ()
            ledger = Ledger.open(home.storage_url, config, fresh=fresh)
            if ledger.put_aside:
                home.rename_weights(config.name, ledger.put_aside)
            conditions = _kept(ledger, config, listener)
            if conditions is None:
                crew.wait_until_ready()
                conditions = conditions_of(config, execution)
            ledger.conditions = conditions
            crew.settle(conditions.execution)
            if tracking:
                ledger.run_id = run_id = tracking.study_run(config.name, ledger.run_id)
                tracking.save_view(run_id, searched(config.space))
            images = images.to(conditions.execution.device)
            with sending(home, tracking, listener) if tracking else contextlib.nullcontext(Nobody()) as sender:
                run = Run.known(sender, ledger.run_id or "")
                try:
                    desk = Desk(sender, listener, interruption)
                    session = Session(home, ledger, conditions, source, images, tracking, run, crew, desk, starts)
                    session.logbook.open(images, conditions, crew.size)
                    with system_metrics(run):
                        yield session
                except BaseException:
                    run.end("FAILED", "failed")
                    raise


def execution_of(config: StudyConfig) -> Execution:
    """How a study asks to be run: on a CPU a trial has a thread of its own unless the study says otherwise.

    Raises:
        UserError: the device is not there, or cannot do what is asked.
    """
    asked = config.execution
    return resolve_execution(asked.device, asked.threads or 1, asked.engine, deterministic=asked.deterministic)


def conditions_of(config: StudyConfig, execution: Execution) -> Conditions:
    """How the trials of a study that begins are run: what is fastest here, as far as the study leaves it open."""
    return Conditions(*tune(execution, config.execution.precision))


def _crew(config: StudyConfig, execution: Execution, listener: Listener) -> Crew:
    guess = config.execution.workers == "auto" and execution.engine == "graph"
    step_bytes = [sketch.step_bytes for sketch in sketches(config, "bfloat16")] if guess else []
    count, remark = fitting(config.execution.workers, execution, step_bytes)
    if remark:
        listener.say(f"{config.name}: {remark}")
    return Crew(execution, count)


def _starts(home: Home, config: StudyConfig, tracking: Tracking | None) -> Iterator[tuple[str, Mapping[str, Value]]]:
    """The recipes of `[start]`, each with the name under which it is known.

    Raises:
        UserError: there is no such file, study or champion, or the study refuses what its space does not hold.
    """
    for number, entry in enumerate(config.start.recipes, start=1):
        given: Mapping[str, Value]
        if not isinstance(entry, str):
            source, given = f"table {number}", values_of(entry)
            if decided := [name for name in given if name in NOT_SEARCHABLE]:
                raise UserError(
                    *(f"start.recipes: {source}: {name}: is the same in all trials of a study; leave it out, and set "
                      f"{NOT_SEARCHABLE[name]}" for name in decided)
                )  # fmt: skip
        elif entry == "champion":
            source, given = entry, _champion_values(config, tracking)
        elif entry.startswith("preset:"):
            source, given = entry, preset_named(entry.removeprefix("preset:")).recipe.flat()
        elif entry.startswith("study:"):
            name = entry.removeprefix("study:")
            leaders = leaders_of(Ledger.find(home.storage_url, name).rows())
            if not leaders:
                raise UserError(f"start.recipes: study {name!r} has no completed trial; search it first")
            source, given = f"the best of {name}", leaders[0].recipe.flat()
        else:
            source, given = entry, read_recipe(entry).flat()
        parameters_of_start(config, source, given)
        yield source, given


def _champion_values(config: StudyConfig, tracking: Tracking | None) -> dict[str, Value]:
    """The present champion's values, or its first member's; the schedule apart, which is the finalists' own."""
    if tracking is None:
        raise UserError("start.recipes: the champion is in MLflow; leave it out, or leave out --no-tracking")
    name = config.finalists.model_name
    version = versions.champion(tracking.client, name)
    if version is None or not version.run_id:
        raise UserError(f"start.recipes: model {name!r} has no champion yet; leave it out, or promote one first")
    trained = version.tags.get(versions.MEMBER_RUNS, version.run_id).split(", ")[0]
    recipe = tracking.recipe_of(trained)
    return {key: value for key, value in recipe.flat().items() if not key.startswith("schedule.")}


def _kept(ledger: Ledger, config: StudyConfig, listener: Listener) -> Conditions | None:
    """The conditions under which a study began, said where they are not the ones asked for.

    Raises:
        UserError: the device that the study began on is not there.
    """
    if ledger.conditions is None:
        return None
    kept, wanted = ledger.conditions.execution, config.execution
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
        listener.say(f"{config.name} goes on as it began: {how}")
    return ledger.conditions


@dataclass
class Session:
    """A study while it runs in this process."""

    home: Home
    ledger: Ledger
    conditions: Conditions
    source: Source
    images: Images
    tracking: Tracking | None
    run: Run
    crew: Crew
    desk: Desk
    starts: tuple[tuple[str, Mapping[str, Value]], ...]
    logbook: Logbook = field(init=False)
    _search: Search | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.logbook = Logbook(self.run, self.ledger, self.desk)

    def introduce(self) -> None:
        """Say what a user might not expect of this study, and queue the recipes it starts with."""
        config = self.ledger.config
        for line in (*config.remarks, *self.ledger.widened):
            self.desk.listener.say(f"{config.name}: {line}")
        if left := drawn_at_random(config.sampler, config.space):
            self.desk.listener.say(f"{config.name}: {config.sampler.name} leaves to chance: {', '.join(left)}")
        for source, given in self.starts:
            if said := self.ledger.start_with(source, given):
                self.desk.listener.say(f"{config.name}: {said}")

    def search(self, observer: Observer) -> Ending:
        """Run trial after trial until something ends the study; says what."""
        self._search = Search(self.ledger, self.images, self.home, self.run, self.logbook, self.desk, observer)
        ending = self._search.run(self.crew)
        self.logbook.draw(self.ledger.rows())  # while the finalists train
        return ending

    def find_champion(self, settings: Finalists, *, again: bool) -> Champion | None:
        """Train the finalists and register the best; what was chosen from the same before is not trained again."""
        leaders = _distinct(leaders_of(self.ledger.rows()))[: settings.recipes]
        if not leaders or self.tracking is None:
            return None
        fingerprint = finalists.fingerprint(leaders, settings)
        known = self.ledger.champion
        if known and known[0] == fingerprint and not again:
            return known[1]
        self.desk.listener.say(
            f"confirming the best {len(leaders)} of the recipes, {settings.seeds} seeds each, {settings.epochs} epochs"
        )
        champion = Promotion(
            study=self.ledger.config.name,
            seed=self.ledger.config.seed,
            settings=settings,
            source=self.source,
            tracking=self.tracking,
            study_run=self.run,
            images=self.images,
            crew=self.crew,
            desk=self.desk,
        ).run(leaders)
        if champion:
            self.ledger.crown(fingerprint, champion)
            confirmed = champion.confirmed.mean
            self.run.metrics({"test/accuracy": champion.test.value, "confirmed/val_accuracy": confirmed})
        return champion

    def close(self, summary: StudySummary) -> None:
        """Complete the study's run, and wait until MLflow has everything."""
        self.logbook.close(summary)
        see_off(self.desk)
        if self._search:
            self.ledger.tracking_seconds += self._search.tracking_seconds


def _distinct(leaders: list[TrialRow]) -> list[TrialRow]:
    """The best trial of each recipe, in order."""
    best: dict[str, TrialRow] = {}
    for row in leaders:
        best.setdefault(row.recipe.key(), row)
    return list(best.values())
