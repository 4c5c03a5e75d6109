"""Trainings without a study: one recipe on record, taken up again where it stopped, or from several seeds."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.data.loading import Images, Source, prepare
from fmnist_search.errors import UserError
from fmnist_search.execution.pool import Crew, fitting
from fmnist_search.files import whole
from fmnist_search.models.classifier import check
from fmnist_search.recipe.recipe import Execution, Recipe
from fmnist_search.reporting.study_note import epochs_csv, origins_csv
from fmnist_search.results.study import (
    EpochReport,
    Listener,
    Observer,
    Silence,
    State,
    TrialResult,
    completed_accuracies,
    mean_and_deviation,
    spread_text,
)
from fmnist_search.tracking.provenance import environment
from fmnist_search.tracking.run_logger import RECIPE_FILE, Run, TrainingRun
from fmnist_search.tracking.store import Tracking, reaching
from fmnist_search.tracking.stored_runs import ENVIRONMENT_FILE, execution_in
from fmnist_search.tracking.training_artifacts import show_training
from fmnist_search.training.autotune import resolve_execution, tune
from fmnist_search.training.callbacks import Board, Company, Keeper, kept_state
from fmnist_search.training.checkpoint import state_bytes
from fmnist_search.training.engine import Watch
from fmnist_search.training.trial import Companion, run_trial, watch_nothing
from fmnist_search.workflows.jobs import Desk, Interruption, Queued, Tracked, see_off, sending, side_by_side, unbegun
from fmnist_search.workspace import Home, image_cache

BEST_FILE, LAST_FILE, EPOCHS_FILE = "weights.pt", "last_weights.pt", "epochs.csv"
ORIGINS_FILE = "recipe_origins.csv"
RESUMES = "resumes"
"""Tag of a run: the run that it took up again."""


@dataclass(frozen=True)
class Several:
    """The same recipe from several seeds, each with its result and the id of its run; `run_id` is above them."""

    recipes: tuple[Recipe, ...]
    results: tuple[TrialResult, ...]
    runs: tuple[str | None, ...]
    run_id: str

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Validation accuracies at the last epoch, of those that completed."""
        return completed_accuracies(self.results)

    def __str__(self) -> str:
        return spread_text(self.accuracies) if self.accuracies else "no validation accuracy"


def train(
    recipe: Recipe,
    *,
    name: str | None = None,
    tracking_uri: str | None = None,
    workdir: str | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    engine: str = "plain",
    precision: str | None = None,
    experiment: str = "fmnist-search",
    observer: Observer = watch_nothing,
    listener: Listener | None = None,
    watch: Watch | None = None,
    origins: Mapping[str, str] | None = None,
    output: Path | None = None,
    tensorboard: Path | None = None,
) -> tuple[TrialResult, str]:
    """Train one recipe without a study, on record in MLflow; gives the result and the run's id.

    `precision` overrides the recipe's, "auto" by a probe of this machine. The observer sees every epoch and may end
    the training; `watch` sees how an epoch gets on. `origins` says where each value of the recipe comes from, by dotted
    name. The run, called after its network or by `name`, keeps the best and the last weights as plain state files and
    the epochs as CSV; the state from which `resume` goes on is written to our own folder (see `Home.training`) after
    every epoch. The same files and the recipe are copied to the folder `output`; TensorBoard's go to the folder
    `tensorboard`.

    Raises:
        UserError: a network that cannot be built, no images, no such device, or a store out of reach.
    """
    check(recipe.model)
    _check_output(output)
    # Nothing is tried out that changes a number, the number format apart, which the recipe holds: trained again, it is
    # equal.
    execution = resolve_execution(device, threads, engine)
    recipe = _in_precision(recipe, precision, execution)
    with workshop(Home.find(tracking_uri, workdir), data_dir, execution, experiment, listener) as shop:
        images = shop.images(recipe)
        board = [Board(tensorboard, images.classes)] if tensorboard else []
        training = shop.begin(f"train {name or recipe.label}", recipe, images, {}, observer)
        if origins:
            training.run.text(ORIGINS_FILE, origins_csv(origins))
        return shop.trained(training, board, watch, output), training.run.address


def resume(
    run_id: str,
    *,
    epochs: int | None = None,
    tracking_uri: str | None = None,
    workdir: str | None = None,
    data_dir: str | Path | None = None,
    experiment: str = "fmnist-search",
    observer: Observer = watch_nothing,
    listener: Listener | None = None,
    watch: Watch | None = None,
    output: Path | None = None,
    tensorboard: Path | None = None,
) -> tuple[TrialResult, str]:
    """Go on with a single training from its last whole epoch, in a new run that holds all its epochs.

    It is trained under the conditions of the first part, to `epochs` in all or, by default, to its recipe's last; on
    a CPU it equals a training that never stopped, bit for bit. A curve of the learning rate is that of all its epochs.

    Raises:
        UserError: nothing is kept of that run here, it is damaged, has those epochs already, or needs other images or
            another device than there are.
    """
    _check_output(output)
    home = Home.find(tracking_uri, workdir)
    kept = kept_state(home.training(run_id), run_id)
    recipe = kept.recipe.replace({"epochs": epochs}) if epochs else kept.recipe
    if recipe.epochs <= kept.epochs:
        raise UserError(
            f"epochs: {recipe.epochs} are not more than the {kept.epochs} that run {run_id!r} has; say how many it "
            "shall have in all, with --epochs"
        )
    execution = execution_in(kept.execution, run_id)
    with workshop(home, data_dir, execution, experiment, listener) as shop:
        if shop.tracking.recipe_of(run_id) != kept.recipe:
            raise UserError(f"run {run_id!r}: what {home.training(run_id)} keeps is another training's; take it away")
        images = shop.images(recipe)
        if [images.digest, images.split_digest] != kept.images:
            raise UserError(
                f"run {run_id!r}: was trained on other images than {recipe.data.dataset} gives now; train its recipe "
                f"anew with --from-run {run_id}"
            )
        if recipe.schedule.name != "constant" and recipe.epochs != kept.recipe.epochs:
            shop.desk.listener.say(
                f"schedule.name: {recipe.schedule.name} was drawn over {kept.recipe.epochs} epochs until now, and over "
                f"{recipe.epochs} from here on"
            )
        board = [Board(tensorboard, images.classes)] if tensorboard else []
        name = f"train {recipe.label}, on from epoch {kept.epochs}"
        training = shop.begin(name, recipe, images, {RESUMES: run_id}, observer)
        training.catch_up([EpochReport(**report) for report in kept.state["epochs"]])
        return shop.trained(training, board, watch, output, kept.state), training.run.address


def train_seeds(
    recipe: Recipe,
    seeds: int,
    *,
    name: str | None = None,
    tracking_uri: str | None = None,
    workdir: str | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    engine: str = "plain",
    precision: str | None = None,
    workers: int | str = "auto",
    experiment: str = "fmnist-search",
    listener: Listener | None = None,
    origins: Mapping[str, str] | None = None,
) -> Several:
    """Train one recipe from its seed and those that follow, side by side, each in a run below a common one.

    On a CPU each has a thread of its own unless more are asked for. Their common run holds mean and deviation of the
    validation accuracy; the best and the last weights of each are kept, but none can be taken up again.

    Raises:
        UserError: a network that cannot be built, no images, no such device, or a store out of reach.
    """
    check(recipe.model)
    execution = resolve_execution(device, threads or 1, engine)
    recipe = _in_precision(recipe, precision, execution)
    recipes = [recipe.replace({"seed": recipe.seed + number}) for number in range(seeds)]
    trainings = [(f"seed {each.seed} {name or each.label}", each) for each in recipes]
    home = Home.find(tracking_uri, workdir)
    with (
        workshop(home, data_dir, execution, experiment, listener) as shop,
        shop.group(f"train {name or recipe.label}, {seeds} seeds", {"family": recipe.model.family}) as above,
    ):
        if origins:
            above.text(ORIGINS_FILE, origins_csv(origins))
        done = shop.several(trainings, above, workers)
        results, runs = zip(*done, strict=True)
        several = Several(tuple(recipes), results, runs, above.address)
        _sum_up(above, several)
    return several


def _in_precision(recipe: Recipe, precision: str | None, execution: Execution) -> Recipe:
    """The recipe with another number format where one is asked for, "auto" by a probe of this machine."""
    if precision is None:
        return recipe
    return recipe.replace({"precision": tune(execution)[1] if precision == "auto" else precision})


def _sum_up(above: Run, several: Several) -> None:
    results = several.results
    columns: dict[str, list[object]] = {
        "seed": [recipe.seed for recipe in several.recipes],
        "state": [result.state.value for result in results],
        "val_accuracy": [result.value for result in results],
        "best_val_accuracy": [result.best_val_accuracy for result in results],
        "run_id": list(several.runs),
    }
    above.table("seeds.json", columns)
    above.note(f"# {several.recipes[0].label}\n\nValidation accuracy: {several}\n")
    if several.accuracies:
        mean, deviation = mean_and_deviation(several.accuracies)
        above.metrics({"seeds/val_accuracy_mean": mean, "seeds/val_accuracy_deviation": deviation})


# ---------------------------------------------------------------------------------------- the workshop


class Single(Tracked):
    """A training in this process, alone."""

    def catch_up(self, reports: Sequence[EpochReport]) -> None:
        """Take in the epochs that it had before it was taken up again."""
        for report in reports:
            self._epochs.append(report)
            self.run.epoch(report, last=False)


class Member(Queued):
    """One of several trainings, whose weights are kept."""

    def end(self, result: TrialResult, seconds: float) -> None:
        """Take in the result."""
        super().end(result, seconds)
        if result.state is State.COMPLETED and result.weights and result.last_weights:
            files = _files({BEST_FILE: result.weights, LAST_FILE: result.last_weights}, result)
            for path, content in files.items():
                self.run.file(path, content)


@dataclass
class Workshop:
    """What trainings without a study share: where they are recorded, how they are run, and who listens."""

    home: Home
    source: Source
    tracking: Tracking
    execution: Execution
    desk: Desk

    def images(self, recipe: Recipe) -> Images:
        """The images of a recipe, on the device."""
        return prepare(recipe.data, self.source, self.execution.device)

    def begin(self, name: str, recipe: Recipe, images: Images, tags: Mapping[str, str], observer: Observer) -> Single:
        """Open the run of a single training."""
        every = {"kind": "training", "device": self.execution.device, **tags}
        run = self.tracking.training_run(self.desk.sender, name, recipe, every)
        run.dataset(images, vars(recipe.data))
        run.text(ENVIRONMENT_FILE, json.dumps(environment(self.execution), indent=2))
        return Single(name, recipe, images, run, self.desk, observer)

    def trained(
        self,
        training: Single,
        board: Sequence[Board],
        watch: Watch | None,
        output: Path | None,
        start: Mapping[str, Any] | None = None,
    ) -> TrialResult:
        """Run it to its end, and keep what is to be kept of it."""
        keeper = Keeper(self.home.training(training.run.address), training.recipe, training.images, self.execution)
        result = _run_here(training, self.execution, Company([keeper, *board]), watch, start)
        if keeper.has_kept:
            state = keeper.kept().state
            weights = {BEST_FILE: state["weights"], LAST_FILE: state["training"]["averaged"]}
            files = _files(weights, result)
            for path, content in files.items():
                training.run.file(path, content)
            if output:
                _copy({RECIPE_FILE: recipe_to_toml(training.recipe).encode(), **files}, output)
            of = (training.name, training.recipe, result.epochs, weights[LAST_FILE], training.images)
            self.desk.sender.when_idle(partial(show_training, training.run, *of))
        see_off(self.desk)
        return result

    @contextlib.contextmanager
    def group(self, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """The run above several trainings, which closes it well."""
        run_id = self.tracking.group_run(name, {"kind": "group", "device": self.execution.device, **tags})
        run = Run.known(self.desk.sender, run_id)
        run.text(ENVIRONMENT_FILE, json.dumps(environment(self.execution), indent=2))
        try:
            yield run
        except BaseException:
            run.end("FAILED", "failed")
            raise
        whole = not self.desk.interruption.requested
        run.end("FINISHED" if whole else "KILLED", "completed" if whole else "interrupted")
        see_off(self.desk)

    def several(
        self, trainings: Sequence[tuple[str, Recipe]], above: Run, workers: int | str = "auto"
    ) -> list[tuple[TrialResult, str | None]]:
        """Run several recipes, each in a run of its own below `above`; gives results and ids of runs, in order."""
        count, remark = fitting(workers, self.execution)
        if remark:
            self.desk.listener.say(remark)
        images = {recipe.data: self.images(recipe) for _, recipe in trainings}
        tags = {"kind": "training", "device": self.execution.device}

        def begin(name: str, recipe: Recipe, again: Callable[[], None] | None) -> Member:
            run = TrainingRun.begun(self.desk.sender, name, recipe, list(recipe.flat()), tags, above)
            return Member(name, recipe, images[recipe.data], run, self.desk, again)

        with Crew(self.execution, min(count, len(trainings))) as crew:
            done = side_by_side(trainings, crew, self.desk, begin)
        see_off(self.desk)  # from here on the runs have ids
        return [
            (member.result, member.run.run_id) if member and member.result else (unbegun("interrupted"), None)
            for member in done
        ]


@contextlib.contextmanager
def workshop(
    home: Home, data_dir: str | Path | None, execution: Execution, experiment: str, listener: Listener | None
) -> Iterator[Workshop]:
    """Everything that trainings without a study need while they run: signals caught, a store that answers.

    Raises:
        UserError: the store is out of reach.
    """
    source = Source(image_cache(), Path(data_dir) if data_dir else None)
    listener = listener or Silence()
    interruption = Interruption()
    with interruption.watching(), reaching(home.tracking_uri):
        tracking = Tracking(home.tracking_uri, experiment)
        with sending(home, tracking, listener) as sender:
            yield Workshop(home, source, tracking, execution, Desk(sender, listener, interruption))


def _run_here(
    job: Single, execution: Execution, companion: Companion, watch: Watch | None, start: Mapping[str, Any] | None
) -> TrialResult:
    started = time.monotonic()
    try:
        result = run_trial(job.recipe, job.images, execution, job.report, start=start, companion=companion, watch=watch)
    except KeyboardInterrupt:
        result = job.broken_off(State.INTERRUPTED, "interrupted in the middle of an epoch")
    except Exception:
        job.close(TrialResult(State.FAILED, (), 0.0, reason="the training stopped on an error"))
        raise
    job.end(result, time.monotonic() - started)
    return result


def _files(weights: Mapping[str, Mapping[str, Tensor]], result: TrialResult) -> dict[str, bytes]:
    """What is kept of a training: weights as plain state files, and its epochs as a table."""
    states = {name: state_bytes(state) for name, state in weights.items()}
    return {**states, EPOCHS_FILE: epochs_csv(result.epochs).encode()}


def _copy(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        with whole(folder / name) as file:
            file.write(content)


def _check_output(folder: Path | None) -> None:
    """Make the folder, and see that it can be written, before anything is trained for it."""
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written ({error.strerror}); name another folder") from None
