"""From a study's best recipes to a version in the registry, and perhaps the champion's alias."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fmnist_search import finalists, registry
from fmnist_search.config import Finalists
from fmnist_search.data import Images, Source, prepare
from fmnist_search.errors import UserError
from fmnist_search.recipe import Data, Recipe, text_of
from fmnist_search.record import Run, TrainingRun
from fmnist_search.results import Accuracy, Champion, Confirmed, State, TrialResult, TrialRow
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
            UserError: none of the finalists could be trained.
        """
        self.prepared[leaders[0].recipe.data] = self.images
        chosen = finalists.find_champion(leaders, self.settings, self.seed, self._train)
        if chosen is None:
            return None
        dataset = chosen.recipe.data.dataset
        test = finalists.test_once(chosen.classifier, dataset, self.source)
        run = next(training.run for training in self.runs if training.recipe == chosen.recipe)
        self._record_test(run, test)
        if not see_off(self.desk):
            raise UserError(
                f"promote: MLflow is out of reach, so that no model can be registered; start it, then "
                f"`fmnist-search promote {self.study}`"
            )
        run_id = run.run_id
        if run_id is None:
            raise UserError(f"promote: MLflow has refused the run {run.address}; see `fmnist-search sync`")
        uri = registry.package(chosen.classifier, run_id)
        tags = self._tags(chosen.confirmed, chosen.recipe, test)
        name = self.settings.model_name
        client = self.tracking.client
        version = registry.register(client, name, uri, run_id, tags, self._description(chosen.confirmed, test))
        alias = registry.claim_alias(client, name, version, chosen.confirmed, tags)
        return Champion(chosen.confirmed, chosen.recipe, test, name, version, alias)

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

    def _record_test(self, run: Run, test: Accuracy) -> None:
        figures = {"test/accuracy": test.value, "test/accuracy_low": test.low, "test/accuracy_high": test.high}
        run.metrics(figures)

    def _tags(self, confirmed: Confirmed, recipe: Recipe, test: Accuracy) -> dict[str, str]:
        return {
            "study": self.study,
            "trial": str(confirmed.trial),
            "network": recipe.label,
            "dataset_digest": self.images.digest,
            "split_digest": self.images.split_digest,
            "validation_images": str(len(self.images.validation)),
            "confirmed_mean": text_of(confirmed.mean),
            "confirmed_deviation": text_of(confirmed.deviation),
            "confirmed_seeds": str(len(confirmed.accuracies)),
            "test_hits": str(test.hits),
            "test_images": str(test.images),
            "test_evaluations": "1",
        }

    def _description(self, confirmed: Confirmed, test: Accuracy) -> str:
        return (
            f"{confirmed.recipe.label}, trial {confirmed.trial} of the study {self.study!r}. Validation accuracy "
            f"{confirmed} on fresh seeds; {test.value:.2%} on the {test.images:,} test images (95 % interval "
            f"{test.low:.2%} to {test.high:.2%}), looked at once. Takes float32 pixels (-1, 28, 28) of 0..255, "
            "gives probabilities of the ten classes."
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
        reached = f"{result.value:.2%} on validation" if result.value is not None else result.state.value
        self._promotion.desk.listener.say(f"{self.name}: {reached}")

    def lost(self, reason: str) -> None:
        """The worker has died over it: it is tried once more."""
        super().lost(reason)
        if self._queue is not None:
            self._queue.append((self.name, self.recipe))
        again = "; it is tried again" if self._queue is not None else ""
        self._promotion.desk.listener.say(f"{self.name}: {reason}{again}")


def _result(finalist: Finalist | None) -> TrialResult:
    return (finalist.result if finalist else None) or unbegun("the finalists were interrupted")
