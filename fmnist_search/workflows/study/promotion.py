"""From a study's best recipes to a version in the registry, and perhaps the champion's alias."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from fmnist_search.config.sections import Finalists
from fmnist_search.data.loading import Images, Source, prepare
from fmnist_search.execution.pool import Crew
from fmnist_search.recipe.recipe import Data, Recipe
from fmnist_search.registry.champion_rule import Figures
from fmnist_search.reporting.model_card import from_study
from fmnist_search.results.study import Champion, State, TrialResult, TrialRow
from fmnist_search.tracking.run_logger import Run, TrainingRun
from fmnist_search.tracking.store import Tracking
from fmnist_search.tracking.training_artifacts import show_training
from fmnist_search.workflows.jobs import Desk, Queued, Tracked, side_by_side, unbegun
from fmnist_search.workflows.registration import Candidate, make_way, register
from fmnist_search.workflows.study import finalists


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
        """Finalists' trainings, each in a run of its own below the study's.

        What is not trained for an interruption comes back as interrupted.
        """
        trained = side_by_side(trainings, self.crew, self.desk, self._begin)
        self.runs += [training for training in trained if training]
        return [(training and training.result) or unbegun("the finalists were interrupted") for training in trained]

    def _begin(self, name: str, recipe: Recipe, again: Callable[[], None] | None) -> Finalist:
        return Finalist(name, recipe, again, self)

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


class Finalist(Queued):
    """The training of a finalist, whose run shows its network."""

    def __init__(self, name: str, recipe: Recipe, again: Callable[[], None] | None, promotion: Promotion):
        images = promotion.images_of(recipe.data)
        super().__init__(name, recipe, images, promotion.open_run(name, recipe), promotion.desk, again)

    def end(self, result: TrialResult, seconds: float) -> None:
        """Take in the result, and draw its pictures when there is time."""
        super().end(result, seconds)
        if result.state is State.COMPLETED:
            weights = result.last_weights or {}
            show = partial(show_training, self.run, self.name, self.recipe, result.epochs, weights, self.images)
            self._desk.sender.when_idle(show)
