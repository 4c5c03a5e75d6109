"""The promotion of a study's best recipes: finalists, model version, and perhaps the alias of the champion."""

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
from fmnist_search.processes import process_identity
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import tags as version_tags
from fmnist_search.registry.champion_rule import ValidationScore
from fmnist_search.reporting.model_card import selection_from_study
from fmnist_search.results.champion import Champion
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialResult, TrialState
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.training_artifacts import log_training_plots
from fmnist_search.tracking.training_run_logger import TrainingRunLogger
from fmnist_search.workflows.jobs import JobContext, RetryingJob, TrackedJob, not_started, run_jobs
from fmnist_search.workflows.registration import Candidate, prepare_name, register
from fmnist_search.workflows.study.finalists import SelectedModel, select_model


@dataclass
class Promotion:
    """The promotion of the best recipes of a study in a session."""

    study: str
    seed: int
    settings: Finalists
    source: DataSource
    mlflow_store: MlflowStore
    study_run: RunLogger
    images: Images
    backend: Backend
    context: JobContext
    _jobs: list[TrackedJob] = field(init=False, default_factory=list)
    _images_by_data: dict[Data, Images] = field(init=False, default_factory=dict)

    def run(self, leaders: Sequence[TrialRecord]) -> Champion | None:
        """Select a model among the leaders and register it; return None, with nothing registered, if interrupted.

        Raises:
            UserError: if the model's name is taken, or too few trainings of the finalists complete.
        """
        store, name = self.mlflow_store, self.settings.model_name
        prepare_name(store, name, store.find_experiment_id(self.study_run.run_key) or store.experiment_id)
        self._images_by_data[leaders[0].recipe.data] = self.images
        selected = select_model(leaders, self.settings, self.seed, self._train, self.images)
        if selected is None or self.context.interruption.is_requested:
            return None
        run = next(job.run for job in self._jobs if job.recipe == selected.recipe)
        retry_command = f"fmnist-search promote {shlex.quote(self.study)}"
        version = register(store, name, self._candidate(selected), run, self.context, self.source, retry_command)
        return Champion(
            confirmed_score=selected.confirmed,
            recipe=selected.recipe,
            test=version.test,
            model=version.model,
            version=version.version,
            alias=version.alias,
            verdict=version.verdict,
            members=len(selected.recipes),
        )

    def _candidate(self, selected: SelectedModel) -> Candidate:
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
        """Train finalists, each in a run below the study's, and return their results."""
        jobs = run_jobs(named_recipes, self.backend, self.context, self._make_job)
        self._jobs += [job for job in jobs if job]
        interrupted = not_started("the finalists were interrupted")
        return [(job and job.result) or interrupted for job in jobs]

    def _make_job(self, name: str, recipe: Recipe, requeue: Callable[[], None] | None) -> FinalistJob:
        images = self._images_for(recipe.data)
        device = self.backend.execution.device
        tags = {
            tag_names.STUDY: self.study,
            tag_names.KIND: tag_names.FINALIST_RUN,
            tag_names.DEVICE: device,
            tag_names.PROCESS: process_identity(),
        }
        parameters = list(recipe.to_flat_dict())
        run = TrainingRunLogger.start(self.context.sender, name, recipe, parameters, tags, self.study_run)
        return FinalistJob(name, recipe, images, run, self.context, requeue)

    def _images_for(self, data: Data) -> Images:
        if data not in self._images_by_data:
            self._images_by_data[data] = load_images(data, self.source, self.backend.execution.device)
        return self._images_by_data[data]


class FinalistJob(RetryingJob):
    """The training of a finalist, whose run holds plots of the training."""

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Handle the result, and render the plots when the sender is idle."""
        super().on_result(result, seconds)
        if result.state is TrialState.COMPLETED and self._context.plots:
            weights = result.last_weights or {}
            log = partial(log_training_plots, self.run, self.name, self.recipe, result.epochs, weights, self.images)
            self._context.sender.run_when_idle(log)
