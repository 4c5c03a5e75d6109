"""From a study's best recipes to a version in the registry, and perhaps the champion's alias."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fmnist_search import finalists, registry
from fmnist_search.card import Card
from fmnist_search.comparison import pack
from fmnist_search.config import Finalists
from fmnist_search.data import Images, Source, prepare
from fmnist_search.errors import UserError
from fmnist_search.evaluate import predict_logits
from fmnist_search.portrait import show_network, show_training
from fmnist_search.recipe import Data, Recipe, text_of
from fmnist_search.record import Run, TrainingRun
from fmnist_search.results import Accuracy, Champion, State, TrialResult, TrialRow
from fmnist_search.rivals import RIGHT
from fmnist_search.tracking import Tracking
from fmnist_search.training import Desk, Tracked, see_off, unbegun
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
        registry.check_name(client, name)
        experiment = client.get_run(self.study_run.address).info.experiment_id
        registry.clear_away(client, name, experiment)
        self.prepared[leaders[0].recipe.data] = self.images
        chosen = finalists.find_champion(leaders, self.settings, self.seed, self._train, self.images)
        if chosen is None or self.desk.interruption.requested:
            return None
        tested = finalists.test_once(chosen.classifier, chosen.recipe.data.dataset, self.source)
        run = next(training.run for training in self.runs if training.recipe == chosen.recipe)
        card = self._card(chosen, tested.accuracy).to_markdown()
        self._record(run, chosen, tested, card)
        run_id = self._settled(run)
        uri = registry.package(chosen.classifier, run_id, name, chosen.recipe.data.dataset)
        version = registry.register(client, name, uri, run_id, self._tags(chosen, tested), card)
        claim = registry.claim_alias(client, name, version)
        members = len(chosen.recipes)
        return Champion(
            chosen.confirmed, chosen.recipe, tested.accuracy, name, version, claim.alias, claim.told, members
        )

    def _settled(self, run: Run) -> str:
        """The id of a run once MLflow has everything of it.

        Raises:
            UserError: MLflow is out of reach, or has refused the run.
        """
        again = f"`fmnist-search promote {shlex.quote(self.study)}`"
        if not see_off(self.desk):
            raise UserError(f"promote: no model can be registered while MLflow is out of reach; start it, then {again}")
        if run.run_id is None:
            raise UserError(
                f"promote: MLflow has refused the run {run.address}; see `fmnist-search sync`, then {again}"
            )
        return run.run_id

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

    def _record(self, run: Run, chosen: finalists.Chosen, tested: finalists.Tested, card: str) -> None:
        """What the version's run keeps: it stands there before the version does."""
        test = tested.accuracy
        run.metrics({"test/accuracy": test.value, "test/accuracy_low": test.low, "test/accuracy_high": test.high})
        run.text(registry.HITS_FILE, chosen.hits.to_json())
        run.text(registry.CARD_FILE, card)
        title = f"{chosen.recipe.label}: {test.value:.2%} of {test.images:,} test images"
        classes = self.images.classes
        show_network(run, tested.probabilities, tested.images, classes, "test", title)

    def _tags(self, chosen: finalists.Chosen, tested: finalists.Tested) -> dict[str, str]:
        confirmed = chosen.confirmed
        return {
            "study": self.study,
            "trial": str(confirmed.trial),
            "network": chosen.recipe.label,
            "ensemble": str(self.settings.ensemble),
            "members": "; ".join(f"{recipe.label} seed {recipe.seed}" for recipe in chosen.recipes),
            "dataset": chosen.recipe.data.dataset,
            "dataset_digest": self.images.digest,
            "split_digest": self.images.split_digest,
            "validation_images": str(len(self.images.validation)),
            "confirmed_mean": text_of(confirmed.mean),
            "confirmed_deviation": text_of(confirmed.deviation),
            "confirmed_seeds": str(len(confirmed.accuracies)),
            registry.HITS: registry.HITS_FILE,
            "test_hits": str(tested.accuracy.hits),
            "test_images": str(tested.accuracy.images),
            "test_evaluations": "1",
            RIGHT: pack(tested.right),
        }

    def _card(self, chosen: finalists.Chosen, test: Accuracy) -> Card:
        return Card(
            model=self.settings.model_name,
            study=self.study,
            recipes=chosen.recipes,
            confirmed=chosen.confirmed,
            candidates=chosen.candidates,
            test=test,
            validation_images=len(self.images.validation),
            dataset_digest=self.images.digest,
            split_digest=self.images.split_digest,
            comparison=registry.UNDECIDED,
        )


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
