"""Run a study: ask, run the trial, tell, until its budget is spent; then find its champion."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna

from fmnist_search import finalists, registry
from fmnist_search.config import Finalists, StudyConfig, read_recipe
from fmnist_search.data import Images, Source, prepare
from fmnist_search.domains import NOT_SEARCHABLE
from fmnist_search.engine import measure_rate, probe_precision, resolve_execution
from fmnist_search.errors import UserError
from fmnist_search.hyperparameters import Value
from fmnist_search.places import Home, image_cache
from fmnist_search.promotion import Promotion
from fmnist_search.recipe import Execution, Recipe, values_of
from fmnist_search.report import study_note
from fmnist_search.results import (
    Champion,
    Decision,
    Ending,
    EpochReport,
    Listener,
    Observer,
    Silence,
    State,
    StudySummary,
    TrialResult,
    TrialRow,
)
from fmnist_search.search.findings import Importances, edges
from fmnist_search.search.ledger import Conditions, Ledger, parameters_of_start
from fmnist_search.search.space import base_recipe, constants, sample, searched, trial_seed
from fmnist_search.search.strategies import SURVIVOR_OF, drawn_at_random, make_sampler
from fmnist_search.summary import ModelSummary, summarize
from fmnist_search.tracking import Run, Tracking, command_line, environment, reaching
from fmnist_search.training import Interruption, save_weights, tracked
from fmnist_search.trial import watch_nothing

SPENT = (State.COMPLETED, State.PRUNED, State.FAILED)
"""What counts against a budget: a trial that was interrupted comes again."""

BACKWARD_PASSES = 3
"""A training step costs about as much as three forward passes."""

DUPLICATES_IN_A_ROW = 50
"""As many draws of known recipes in a row say that the space holds no other."""


def run_study(
    config: StudyConfig,
    *,
    tracking_uri: str | None = None,
    workdir: str | None = None,
    data_dir: str | Path | None = None,
    fresh: bool = False,
    observer: Observer = watch_nothing,
    listener: Listener | None = None,
) -> StudySummary:
    """Run a study to the end of its budget, or go on with it where it stopped, and find its champion.

    Every trial is a run in MLflow. The observer sees each epoch of every trial and may end it; the listener hears
    what happens. With `fresh`, an earlier study of that name is put aside.

    Raises:
        UserError: no images, no such device, a store out of reach, or a stored study that searches something else.
    """
    home = Home.find(tracking_uri, workdir)
    with _session(home, config, data_dir, listener or Silence(), fresh=fresh, searching=True) as session:
        session.introduce()
        ledger = session.ledger
        started, before = time.monotonic(), len(ledger.rows())
        ending = session.search(observer)
        champion = session.find_champion(config.finalists, again=False) if ending.is_final else None
        if session.interruption.requested:
            ending = Ending.INTERRUPTED
        summary = _summary(ledger, ending, len(ledger.rows()) - before, time.monotonic() - started, champion)
        session.close(summary)
    return summary


def promote(
    name: str,
    *,
    settings: Finalists | None = None,
    tracking_uri: str | None = None,
    workdir: str | None = None,
    data_dir: str | Path | None = None,
    listener: Listener | None = None,
) -> StudySummary:
    """Confirm the best recipes of a study anew, and register the chosen one's model.

    `settings` are the study file's own where none are given.

    Raises:
        UserError: there is no such study, or it has no completed trial.
    """
    home = Home.find(tracking_uri, workdir)
    ledger = Ledger.find(home.storage_url, name)
    if _summary(ledger, Ending.OPEN).best is None:
        raise UserError(f"study {name!r}: has no completed trial to promote; search on first", exit_code=3)
    with _session(home, ledger.config, data_dir, listener or Silence()) as session:
        champion = session.find_champion(settings or ledger.config.finalists, again=True)
        ending = Ending.INTERRUPTED if session.interruption.requested else _state_of(ledger)
        summary = _summary(ledger, ending, champion=champion)
        session.close(summary)
    return summary


@dataclass(frozen=True)
class Preview:
    """What a study would do: its first recipes with their networks, and how long it would train at most."""

    recipes: tuple[tuple[Recipe, ModelSummary], ...]
    seconds: float | None


def preview(config: StudyConfig, count: int = 5) -> Preview:
    """Draw the first recipes of a study without starting it, and estimate its time if no trial were pruned.

    The estimate takes the multiply-adds of the drawn networks at the rate of a short measurement of this machine.

    Raises:
        UserError: a drawn network is refused, or there is no such device.
    """
    conditions = _conditions(resolve_execution(config.execution.device, config.execution.threads), config)
    base = base_recipe(config, conditions.precision)
    study = optuna.create_study(direction="maximize", sampler=make_sampler(config.sampler, config.seed, config.space))
    drawn = []
    for _ in range(count):
        trial = study.ask()
        recipe = sample(trial, config.space, base, trial_seed(config.seed, trial.number))
        drawn.append((recipe, summarize(recipe.model)))
        study.tell(trial, 0.0)
    limit = config.budget.minutes * 60 if config.budget.minutes else None
    if config.budget.trials is None:
        return Preview(tuple(drawn), limit)
    mult_adds = statistics.fmean(summary.mult_adds for _, summary in drawn)
    passes = BACKWARD_PASSES * config.data.training_count + config.data.validation
    epochs = config.budget.trials * config.budget.epochs
    seconds = epochs * passes * mult_adds / measure_rate(conditions.execution, conditions.precision)
    return Preview(tuple(drawn), min(seconds, limit or seconds))


def status(name: str, *, tracking_uri: str | None = None, workdir: str | None = None) -> StudySummary:
    """A study as it stands, read from Optuna alone.

    Raises:
        UserError: there is no such study.
    """
    ledger = Ledger.find(Home.find(tracking_uri, workdir).storage_url, name)
    return _summary(ledger, _state_of(ledger))


def importance(name: str, *, tracking_uri: str | None = None, workdir: str | None = None) -> Importances:
    """Which hyperparameters of a study decide; UserError where it is not there, or too few of its trials completed."""
    return Ledger.find(Home.find(tracking_uri, workdir).storage_url, name).importances()


def all_studies(*, tracking_uri: str | None = None, workdir: str | None = None) -> list[StudySummary]:
    """Every study of a folder as it stands; none where nothing was ever run there."""
    url = Home.find(tracking_uri, workdir).storage_url
    try:
        names = Ledger.names(url)
    except UserError:
        return []
    return [status(name, tracking_uri=tracking_uri, workdir=workdir) for name in names]


def page_of(run_id: str, *, tracking_uri: str | None = None, workdir: str | None = None) -> str | None:
    """The address of a run's page in the MLflow UI; None where the store does not know the run."""
    uri = Home.find(tracking_uri, workdir).tracking_uri
    with reaching(uri):
        experiment = Tracking(uri, "fmnist-search").experiment_of(run_id)
    server = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}" if experiment else None


def config_of(name: str, *, tracking_uri: str | None = None, workdir: str | None = None) -> StudyConfig:
    """The configuration with which a study last ran; UserError where there is no such study."""
    return Ledger.find(Home.find(tracking_uri, workdir).storage_url, name).config


def latest_study(*, tracking_uri: str | None = None, workdir: str | None = None) -> str:
    """The name of the study that was begun last; UserError where there is none."""
    home = Home.find(tracking_uri, workdir)
    names = Ledger.names(home.storage_url)
    if not names:
        raise UserError(f"{home.folder}: holds no study yet; run `fmnist-search search studies/quick.toml` first")
    return names[-1]


def latest_run(*, tracking_uri: str | None = None, workdir: str | None = None) -> str | None:
    """The MLflow run of the study that was begun last; None where there is no study."""
    url = Home.find(tracking_uri, workdir).storage_url
    try:
        return Ledger.find(url, Ledger.names(url)[-1]).run_id
    except (UserError, IndexError):
        return None


def _summary(
    ledger: Ledger, ending: Ending, new_trials: int = 0, seconds: float = 0.0, champion: Champion | None = None
) -> StudySummary:
    known = ledger.champion
    summary = StudySummary(
        name=ledger.config.name,
        question=ledger.config.question,
        trials=tuple(ledger.rows()),
        ended_by=ending,
        new_trials=new_trials,
        seconds=seconds,
        run_id=ledger.run_id,
        champion=champion or (known[1] if known else None),
    )
    return dataclasses.replace(summary, edges=edges(summary.leaders, ledger.config.space))


def _state_of(ledger: Ledger) -> Ending:
    """Whether a study that does not run has reached a limit."""
    ending = _spent(ledger.config, ledger.rows(), 0.0)
    return ending or (Ending.EXHAUSTED if ledger.is_exhausted else Ending.OPEN)


def _spent(config: StudyConfig, rows: list[TrialRow], seconds: float) -> Ending | None:
    """Which limit is reached, after these trials and so many seconds of searching; None if none is."""
    counted = [row for row in rows if row.state in SPENT and row.duplicate_of is None]
    completed = [(row.value or 0.0, -place) for place, row in enumerate(counted) if row.state is State.COMPLETED]
    best, place = max(completed, default=(0.0, 0))
    minutes = (seconds + sum(row.seconds for row in rows)) / 60
    budget = config.budget
    reached = {
        Ending.FAILURES: (sum(row.state is State.FAILED for row in counted), budget.failures),
        Ending.TARGET: (best, budget.target),
        Ending.TRIALS: (len(counted), budget.trials),
        Ending.EPOCHS: (sum(row.epochs for row in counted), budget.total_epochs),
        Ending.MINUTES: (minutes, budget.minutes),
        Ending.PATIENCE: (len(counted) - 1 + place if completed else len(counted), budget.patience),
    }
    return next((ending for ending, (spent, limit) in reached.items() if limit is not None and spent >= limit), None)


@contextmanager
def _session(
    home: Home,
    config: StudyConfig,
    data_dir: str | Path | None,
    listener: Listener,
    *,
    fresh: bool = False,
    searching: bool = False,
) -> Iterator[_Session]:
    """Everything a study needs while it runs: images on the device, its run in MLflow, signals caught.

    Whatever may be missing (images, device, store, recipes to start with) is looked for before anything is written.
    """
    interruption = Interruption()
    with interruption.watching(), reaching(home.tracking_uri):
        source = Source(image_cache(), Path(data_dir) if data_dir else None)
        images = prepare(config.data, source)
        execution = resolve_execution(config.execution.device, config.execution.threads)
        tracking = Tracking(home.tracking_uri, config.experiment)
        starts = tuple(_starts(home, config, tracking)) if searching else ()
        ledger = Ledger.open(home.storage_url, config, fresh=fresh)
        if ledger.put_aside:
            home.rename_weights(config.name, ledger.put_aside)
        conditions = _usable(ledger.conditions or _conditions(execution, config), config, listener)
        ledger.conditions = conditions
        run = tracking.study_run(config.name, ledger.run_id)
        ledger.run_id = run.run_id
        images = images.to(conditions.execution.device)
        session = _Session(home, ledger, conditions, source, images, tracking, run, interruption, listener, starts)
        try:
            session.describe()
            yield session
        except BaseException:
            run.end("FAILED", "failed")
            raise


def _starts(home: Home, config: StudyConfig, tracking: Tracking) -> Iterator[tuple[str, Mapping[str, Value]]]:
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
        elif entry.startswith("study:"):
            name = entry.removeprefix("study:")
            best = _summary(Ledger.find(home.storage_url, name), Ending.OPEN).best
            if best is None:
                raise UserError(f"start.recipes: study {name!r} has no completed trial; search it first")
            source, given = f"the best of {name}", best.recipe.flat()
        else:
            source, given = entry, read_recipe(entry).flat()
        parameters_of_start(config, source, given)
        yield source, given


def _champion_values(config: StudyConfig, tracking: Tracking) -> dict[str, Value]:
    """The present champion's values, its schedule apart, which is the finalists' own."""
    name = config.finalists.model_name
    version = registry.champion(tracking.client, name)
    if version is None or not version.run_id:
        raise UserError(f"start.recipes: model {name!r} has no champion yet; leave it out, or promote one first")
    recipe = tracking.recipe_of(version.run_id)
    return {key: value for key, value in recipe.flat().items() if not key.startswith("schedule.")}


def _conditions(execution: Execution, config: StudyConfig) -> Conditions:
    precision = config.execution.precision
    return Conditions(execution, probe_precision(execution) if precision == "auto" else precision)


def _usable(conditions: Conditions, config: StudyConfig, listener: Listener) -> Conditions:
    """The conditions that a study keeps, said where they are not the ones asked for.

    Raises:
        UserError: the device that the study began on is not there.
    """
    kept, wanted = conditions.execution, config.execution
    try:
        resolve_execution(kept.device)
    except UserError:
        raise UserError(
            f"study {config.name!r}: began on {kept.device!r}, which cannot be used here; go on where there is one, "
            "choose another name (--name), or begin anew with --fresh"
        ) from None
    if wanted.device not in ("auto", kept.device) or wanted.threads not in (0, kept.threads):
        listener.say(f"{config.name} goes on as it began: on {kept.device} with {kept.threads} threads")
    return conditions


@dataclass
class _Session:
    """A study while it runs in this process."""

    home: Home
    ledger: Ledger
    conditions: Conditions
    source: Source
    images: Images
    tracking: Tracking
    run: Run
    interruption: Interruption
    listener: Listener
    starts: tuple[tuple[str, Mapping[str, Value]], ...]
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = searched(self.ledger.config.space)

    def introduce(self) -> None:
        """Say what a user might not expect of this study, and queue the recipes it starts with."""
        config = self.ledger.config
        for line in (*config.remarks, *self.ledger.widened):
            self.listener.say(f"{config.name}: {line}")
        if left := drawn_at_random(config.sampler, config.space):
            self.listener.say(f"{config.name}: {config.sampler.name} leaves to chance: {', '.join(left)}")
        for source, given in self.starts:
            if said := self.ledger.start_with(source, given):
                self.listener.say(f"{config.name}: {said}")

    def describe(self) -> None:
        """What the study's run says from the start."""
        config = self.ledger.config
        self.run.parameters(constants(config.space, base_recipe(config, self.conditions.precision)))
        self.run.dataset(self.images, vars(config.data))
        self.run.text("study.toml", config.to_toml())
        self.run.text("command.txt", command_line() + "\n")
        self.run.text("environment.json", json.dumps(environment(self.conditions.execution), indent=2))
        self.run.tags({"device": self.conditions.execution.device, "optuna_study": config.name})

    def search(self, observer: Observer) -> Ending:
        """Run trial after trial until something ends the study; says what."""
        started = time.monotonic()
        earlier = self.ledger.rows()
        known = {row.recipe.key(): row for row in earlier if _answers(row)}
        self.listener.study_opened(earlier)
        duplicates = 0
        rows = list(earlier)
        while (ending := self._ending(rows, earlier, started)) is None:
            trial, recipe = self.ledger.ask()
            same = None if SURVIVOR_OF in trial.user_attrs else known.get(recipe.key())
            if same is not None:
                rows.append(self.ledger.tell_duplicate(trial, same))
                duplicates += 1
                if duplicates == DUPLICATES_IN_A_ROW:
                    return Ending.EXHAUSTED
                continue
            duplicates = 0
            row = self._trial(trial, recipe, observer)
            rows.append(row)
            if row.state is State.INTERRUPTED:
                return Ending.INTERRUPTED
            if _answers(row):
                known[recipe.key()] = row
            self._progress(rows)
        return ending

    def find_champion(self, settings: Finalists, *, again: bool) -> Champion | None:
        """Train the finalists and register the best; what was chosen from the same before is not trained again."""
        leaders = _distinct(_summary(self.ledger, Ending.OPEN).leaders)[: settings.recipes]
        if not leaders:
            return None
        fingerprint = finalists.fingerprint(leaders, settings)
        known = self.ledger.champion
        if known and known[0] == fingerprint and not again:
            return known[1]
        self.listener.say(
            f"confirming the best {len(leaders)} of the recipes, {settings.seeds} seeds each, {settings.epochs} epochs"
        )
        champion = Promotion(
            study=self.ledger.config.name,
            seed=self.ledger.config.seed,
            settings=settings,
            source=self.source,
            execution=self.conditions.execution,
            tracking=self.tracking,
            study_run=self.run,
            images=self.images,
            interruption=self.interruption,
            listener=self.listener,
        ).run(leaders)
        if champion:
            self.ledger.crown(fingerprint, champion)
            confirmed = champion.confirmed.mean
            self.run.metrics({"test/accuracy": champion.test.value, "confirmed/val_accuracy": confirmed})
        return champion

    def close(self, summary: StudySummary) -> None:
        """Write the study's note and end its run."""
        config = self.ledger.config
        space = {name: text for name, text in config.identity().items() if name.startswith("space.")}
        self.run.note(study_note(summary, self.names, space))
        self.run.tags({"ended_by": summary.ended_by.name.lower()})
        interrupted = summary.ended_by is Ending.INTERRUPTED
        self.run.end("KILLED" if interrupted else "FINISHED", "interrupted" if interrupted else "finished")

    def _ending(self, rows: list[TrialRow], earlier: list[TrialRow], started: float) -> Ending | None:
        if self.interruption.requested:
            return Ending.INTERRUPTED
        trained_now = sum(row.seconds for row in rows[len(earlier) :])
        ending = _spent(self.ledger.config, rows, time.monotonic() - started - trained_now)
        return ending or (Ending.EXHAUSTED if self.ledger.is_exhausted else None)

    def _trial(self, trial: optuna.Trial, recipe: Recipe, observer: Observer) -> TrialRow:
        """One trial: trained, pruned where that is advised, and written down wherever it ends."""
        title = f"{trial.number:03d} {recipe.label}"
        tags = {
            "study": self.ledger.config.name,
            "kind": "trial",
            "trial": str(trial.number),
            "device": self.conditions.execution.device,
        }
        for name in ("retry_of", "start", SURVIVOR_OF):
            if name in trial.user_attrs:
                tags[name] = str(trial.user_attrs[name])
        started = time.monotonic()
        limit = self.ledger.config.budget.trial_minutes or math.inf
        out_of_time = False

        def decide(report: EpochReport) -> Decision:
            nonlocal out_of_time
            if self.ledger.should_prune(trial, report):
                return Decision.PRUNE
            out_of_time = time.monotonic() - started >= limit * 60
            return Decision.PRUNE if out_of_time else observer(report)

        run_id = ""
        result = TrialResult(State.INTERRUPTED, (), 0.0, reason="the study stopped on an error")
        try:
            run = self.tracking.training_run(title, recipe, self.names, tags, self.run)
            run_id = run.run_id
            self.listener.training_started(title, recipe)
            result = tracked(
                recipe, self.images, self.conditions.execution, run, self.interruption, self.listener, decide
            )
            if out_of_time and result.state is State.PRUNED:
                reason = f"its {limit:g} minutes were spent after epoch {len(result.epochs)}"
                result = dataclasses.replace(result, reason=reason)
                run.tags({"reason": reason})
        finally:
            row = self.ledger.tell(trial, result, run_id)
        if result.state is State.COMPLETED:
            save_weights(self.home.weights(self.ledger.config.name, trial.number), result)
        self.listener.trial_ended(row)
        return row

    def _progress(self, rows: list[TrialRow]) -> None:
        done = [row.value for row in rows if row.state is State.COMPLETED and row.value is not None]
        if done:
            self.run.metrics({"best/val_accuracy": max(done)}, step=len(rows))


def _answers(row: TrialRow) -> bool:
    """Whether a later equal recipe can be answered from this trial."""
    return row.state in (State.COMPLETED, State.PRUNED) and row.value is not None and row.duplicate_of is None


def _distinct(leaders: list[TrialRow]) -> list[TrialRow]:
    """The best trial of each recipe, in order."""
    best: dict[str, TrialRow] = {}
    for row in leaders:
        best.setdefault(row.recipe.key(), row)
    return list(best.values())
