"""From a study's best recipes to a version in the registry, and perhaps the champion's alias."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from fmnist_search.config.sections import Finalists
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.execution.backend import Backend
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import tags as version_tags
from fmnist_search.registry.champion_rule import ValidationScore
from fmnist_search.reporting.model_card import selection_from_study
from fmnist_search.results.champion import Champion
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialResult, TrialState
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.run_logger import RunLogger, TrainingRunLogger
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.training_artifacts import log_training_plots
from fmnist_search.workflows.jobs import JobContext, RetryingJob, TrackedJob, not_started, run_jobs
from fmnist_search.workflows.registration import Candidate, prepare_name, register
from fmnist_search.workflows.study import finalists


@dataclass
class Promotion:
    """All that a promotion needs from the study whose recipes it promotes."""

    study: str
    seed: int
    settings: Finalists
    source: DataSource
    mlflow_store: MlflowStore
    study_run: RunLogger
    images: Images
    pool: Backend
    context: JobContext
    jobs: list[TrackedJob] = field(init=False, default_factory=list)
    images_by_data: dict[Data, Images] = field(init=False, default_factory=dict)

    def run(self, leaders: Sequence[TrialRecord]) -> Champion | None:
        """Confirm, choose, refit, test once, register; None when it was interrupted, with nothing registered.

        Raises:
            UserError: the model's name is taken, or too few of the finalists could be trained.
        """
        store, name = self.mlflow_store, self.settings.model_name
        prepare_name(store, name, store.find_experiment_id(self.study_run.run_key) or store.experiment_id)
        self.images_by_data[leaders[0].recipe.data] = self.images
        chosen = finalists.select_model(leaders, self.settings, self.seed, self._train, self.images)
        if chosen is None or self.context.interrupt_handler.requested:
            return None
        run = next(training.run for training in self.jobs if training.recipe == chosen.recipe)
        again = f"fmnist-search promote {shlex.quote(self.study)}"
        made = register(store, name, self._candidate(chosen), run, self.context, self.source, again)
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

    def _candidate(self, selected: finalists.SelectedModel) -> Candidate:
        confirmed, images = selected.confirmed, self.images
        return Candidate(
            classifier=selected.classifier,
            recipes=selected.recipes,
            classes=images.classes,
            validation_score=ValidationScore(
                mean=confirmed.mean,
                std=confirmed.std,
                seeds=len(confirmed.accuracies),
                images=len(images.validation),
                dataset_digest=images.digest,
                split_digest=images.split_digest,
                correctness=selected.correctness,
            ),
            selection=selection_from_study(self.study, selected.recipes, confirmed, selected.candidates),
            tags={
                version_tags.STUDY: self.study,
                version_tags.TRIAL: str(confirmed.trial),
                version_tags.ENSEMBLE: str(self.settings.ensemble),
            },
        )

    def _train(self, named_recipes: Sequence[tuple[str, Recipe]]) -> list[TrialResult]:
        """Finalists' trainings, each in a run of its own below the study's.

        What is not trained for an interruption comes back as interrupted.
        """
        trained = run_jobs(named_recipes, self.pool, self.context, self._make_job)
        self.jobs += [training for training in trained if training]
        return [(training and training.result) or not_started("the finalists were interrupted") for training in trained]

    def _make_job(self, name: str, recipe: Recipe, requeue: Callable[[], None] | None) -> FinalistJob:
        return FinalistJob(name, recipe, requeue, self)

    def open_run(self, name: str, recipe: Recipe) -> TrainingRunLogger:
        """The run of a finalist."""
        device = self.pool.execution.device
        tags = {tag_names.STUDY: self.study, tag_names.KIND: tag_names.FINALIST_RUN, tag_names.DEVICE: device}
        return TrainingRunLogger.start(
            self.context.sender, name, recipe, list(recipe.to_flat_dict()), tags, self.study_run
        )

    def images_for(self, data: Data) -> Images:
        """The images that a recipe needs, on the device."""
        if data not in self.images_by_data:
            self.images_by_data[data] = load_images(data, self.source, self.pool.execution.device)
        return self.images_by_data[data]


class FinalistJob(RetryingJob):
    """The training of a finalist, whose run shows its network."""

    def __init__(self, name: str, recipe: Recipe, requeue: Callable[[], None] | None, promotion: Promotion):
        images = promotion.images_for(recipe.data)
        super().__init__(name, recipe, images, promotion.open_run(name, recipe), promotion.context, requeue)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Take in the result, and draw its pictures when there is time."""
        super().on_result(result, seconds)
        if result.state is TrialState.COMPLETED:
            weights = result.last_weights or {}
            show = partial(log_training_plots, self.run, self.name, self.recipe, result.epochs, weights, self.images)
            self._context.sender.run_when_idle(show)
