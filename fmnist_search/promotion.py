"""From a study's best recipes to a version in the registry, and perhaps the champion's alias."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fmnist_search import finalists
from fmnist_search.card import from_study
from fmnist_search.comparison import Figures
from fmnist_search.config import Finalists
from fmnist_search.data import Images, Source, prepare
from fmnist_search.evaluate import predict_logits
from fmnist_search.portrait import show_network, show_training
from fmnist_search.recipe import Data, Recipe
from fmnist_search.record import Run, TrainingRun
from fmnist_search.registration import Candidate, make_way, register
from fmnist_search.results import Champion, State, TrialResult, TrialRow
from fmnist_search.tracking import Tracking
from fmnist_search.training import Desk, Tracked, unbegun
from fmnist_search.workers import Crew


@dataclass
class Promotion:
    """All that a promotion needs from the study whose recipes it promotes."""

    study: str
    seed: int
    settings: Finalists
    source: Source
    tracking: Tracking
    study_run: Run
    images: Images
    crew: Crew
    desk: Desk
    runs: list[Tracked] = field(init=False, default_factory=list)
    prepared: dict[Data, Images] = field(init=False, default_factory=dict)

    def run(self, leaders: Sequence[TrialRow]) -> Champion | None:
        """Confirm, choose, refit, test once, register; None when it was interrupted, with nothing registered.

        Raises:
            UserError: the model's name is taken, or too few of the finalists could be trained.
        """
        client, name = self.tracking.client, self.settings.model_name
        make_way(client, name, client.get_run(self.study_run.address).info.experiment_id)
        self.prepared[leaders[0].recipe.data] = self.images
        chosen = finalists.find_champion(leaders, self.settings, self.seed, self._train, self.images)
        if chosen is None or self.desk.interruption.requested:
            return None
        run = next(training.run for training in self.runs if training.recipe == chosen.recipe)
        again = f"fmnist-search promote {shlex.quote(self.study)}"
        made = register(client, name, self._candidate(chosen), run, self.desk, self.source, again)
        return Champion(
            confirmed=chosen.confirmed,
            recipe=chosen.recipe,
            test=made.test,
            model=made.model,
            version=made.version,
            alias=made.alias,
            verdict=made.verdict,
            members=len(chosen.recipes),
        )

    def _candidate(self, chosen: finalists.Chosen) -> Candidate:
        confirmed, images = chosen.confirmed, self.images
        return Candidate(
            classifier=chosen.classifier,
            recipes=chosen.recipes,
            classes=images.classes,
            figures=Figures(
                mean=confirmed.mean,
                deviation=confirmed.deviation,
                seeds=len(confirmed.accuracies),
                images=len(images.validation),
                dataset_digest=images.digest,
                split_digest=images.split_digest,
                hits=chosen.hits,
            ),
            origin=from_study(self.study, chosen.recipes, confirmed, chosen.candidates),
            tags={"study": self.study, "trial": str(confirmed.trial), "ensemble": str(self.settings.ensemble)},
        )

    def _train(self, trainings: Sequence[tuple[str, Recipe]]) -> list[TrialResult]:
        """Finalists' trainings, as many at a time as there are workers, each in a run of its own below the study's.

        What is not trained for an interruption comes back as interrupted.
        """
        waiting = deque(trainings)
        begun: dict[str, Finalist] = {}

        def next_finalist() -> Finalist | None:
            if self.desk.interruption.requested or not waiting:
                return None
            name, recipe = waiting.popleft()
            begun[name] = Finalist(name, recipe, self, None if name in begun else waiting)
            return begun[name]

        try:
            self.crew.run(next_finalist)
        except BaseException as error:
            self.crew.stop()
            if not isinstance(error, KeyboardInterrupt):
                self._abandon(begun.values(), "the study stopped on an error")
                raise
            self._abandon(begun.values(), "interrupted in the middle of an epoch")
            self.desk.interruption.requested = True
        self.runs += begun.values()
        for name, _ in waiting:  # lost its worker, and an interruption came before its second attempt
            begun.pop(name, None)
        return [_result(begun.get(name)) for name, _ in trainings]

    def _abandon(self, begun: Iterable[Finalist], reason: str) -> None:
        for finalist in begun:
            if finalist.result is None:
                finalist.close(finalist.broken_off(State.INTERRUPTED, reason))

    def open_run(self, name: str, recipe: Recipe) -> TrainingRun:
        """The run of a finalist."""
        device = self.crew.execution.device
        tags = {"study": self.study, "kind": "finalist", "device": device}
        return TrainingRun.begun(self.desk.sender, name, recipe, list(recipe.flat()), tags, self.study_run)

    def images_of(self, data: Data) -> Images:
        """The images that a recipe needs, on the device."""
        if data not in self.prepared:
            self.prepared[data] = prepare(data, self.source, self.crew.execution.device)
        return self.prepared[data]


class Finalist(Tracked):
    """The training of a finalist; one whose worker dies goes back into the queue, if there is one for it."""

    def __init__(self, name: str, recipe: Recipe, promotion: Promotion, queue: deque[tuple[str, Recipe]] | None):
        images = promotion.images_of(recipe.data)
        super().__init__(name, recipe, images, promotion.open_run(name, recipe), promotion.desk)
        self._promotion = promotion
        self._queue = queue

    def end(self, result: TrialResult, seconds: float) -> None:
        """Take in the result, and say it."""
        super().end(result, seconds)
        if result.state is State.COMPLETED:
            self._desk.sender.when_idle(lambda: self._portray(result))
        reached = f"{result.value:.2%} on validation" if result.value is not None else result.state.value
        self._promotion.desk.listener.say(f"{self.name}: {reached}")

    def _portray(self, result: TrialResult) -> None:
        show_training(self.run, result.epochs, self.name)
        if result.last_weights and len(self.images.validation):
            images = self.images.validation
            classifier = finalists.trained(self.recipe, result).to(images.pixels.device)
            probabilities = predict_logits(classifier, images.pixels).softmax(1)
            show_network(self.run, probabilities, images, self.images.classes, "val", self.name)

    def lost(self, reason: str) -> None:
        """The worker has died over it: it is tried once more."""
        super().lost(reason)
        if self._queue is not None:
            self._queue.append((self.name, self.recipe))
        again = "; it is tried again" if self._queue is not None else ""
        self._promotion.desk.listener.say(f"{self.name}: {reason}{again}")


def _result(finalist: Finalist | None) -> TrialResult:
    return (finalist.result if finalist else None) or unbegun("the finalists were interrupted")
