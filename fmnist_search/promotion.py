"""From a study's best recipes to a version in the registry, and perhaps the champion's alias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fmnist_search import finalists, registry
from fmnist_search.config import Finalists
from fmnist_search.data import Images, Source, prepare
from fmnist_search.recipe import Data, Execution, Recipe, text_of
from fmnist_search.results import Accuracy, Champion, Confirmed, Listener, TrialResult, TrialRow
from fmnist_search.tracking import Run, Tracking
from fmnist_search.training import Interruption, tracked


@dataclass
class Promotion:
    """All that a promotion needs from the study whose recipes it promotes."""

    study: str
    seed: int
    settings: Finalists
    source: Source
    execution: Execution
    tracking: Tracking
    study_run: Run
    images: Images
    interruption: Interruption
    listener: Listener
    runs: list[tuple[str, Recipe]] = field(init=False, default_factory=list)
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
        run_id = next(run_id for run_id, recipe in self.runs if recipe == chosen.recipe)
        self._record_test(run_id, test)
        uri = registry.package(chosen.classifier, run_id)
        tags = self._tags(chosen.confirmed, chosen.recipe, test)
        name = self.settings.model_name
        client = self.tracking.client
        version = registry.register(client, name, uri, run_id, tags, self._description(chosen.confirmed, test))
        alias = registry.claim_alias(client, name, version, chosen.confirmed, tags)
        return Champion(chosen.confirmed, chosen.recipe, test, name, version, alias)

    def _train(self, name: str, recipe: Recipe) -> TrialResult:
        """One finalist's training, in a run of its own below the study's."""
        images = self._images(recipe.data)
        tags = {"study": self.study, "kind": "finalist", "device": self.execution.device}
        run = self.tracking.training_run(name, recipe, list(recipe.flat()), tags, self.study_run)
        self.runs.append((run.run_id, recipe))
        self.listener.training_started(name, recipe)
        result = tracked(recipe, images, self.execution, run, self.interruption, self.listener)
        reached = f"{result.value:.2%} on validation" if result.value is not None else result.state.value
        self.listener.say(f"{name}: {reached}")
        return result

    def _images(self, data: Data) -> Images:
        if data not in self.prepared:
            self.prepared[data] = prepare(data, self.source, self.execution.device)
        return self.prepared[data]

    def _record_test(self, run_id: str, test: Accuracy) -> None:
        figures = {"test/accuracy": test.value, "test/accuracy_low": test.low, "test/accuracy_high": test.high}
        Run(self.tracking, run_id).metrics(figures)

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
