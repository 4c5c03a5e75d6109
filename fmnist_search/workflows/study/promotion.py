"""The promotion of a study's best recipes: finalists, model version, and perhaps the alias of the champion."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
from fmnist_search.registry.study_versions import used_seeds
from fmnist_search.reporting.model_card import selection_from_study
from fmnist_search.results.champion import Champion, SelectedRecipe
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialResult
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.run_logger import RunLogger, now_ms
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.training_run_logger import TrainingRunLogger, new_run_key
from fmnist_search.workflows.jobs import JobContext, Requeue, TrackedJob, not_started, run_jobs
from fmnist_search.workflows.registration import (
    Candidate,
    RegisteredVersion,
    finish_registration,
    prepare_name,
    register,
)
from fmnist_search.workflows.study.finalist_trainings import FinalistFiles, FinalistJob
from fmnist_search.workflows.study.finalists import SelectedModel, select_model, selection_key
from fmnist_search.workspace import Workspace


@dataclass
class Promotion:
    """The promotion of the best recipes of a study in a session."""

    study_store: StudyStore
    settings: Finalists
    workspace: Workspace
    mlflow_store: MlflowStore
    study_run: RunLogger
    images: Images
    backend: Backend
    context: JobContext
    _jobs: list[TrackedJob] = field(init=False, default_factory=list)
    _images_by_data: dict[Data, Images] = field(init=False, default_factory=dict)
    _source: DataSource = field(init=False)
    _files: FinalistFiles = field(init=False)

    def __post_init__(self) -> None:
        self._source = DataSource.from_workspace(self.workspace)
        self._files = FinalistFiles(self.workspace.checkpoints_folder(self.study))

    def run(self, leaders: Sequence[TrialRecord]) -> Champion | None:
        """Select a model among the leaders, register it and store the champion of the study.

        A version that a promotion of the same leaders has registered before it was killed is used. Return None, with
        nothing registered, if interrupted.

        Raises:
            UserError: if the model's name is taken, or too few trainings of the finalists complete.
        """
        store, name = self.mlflow_store, self.settings.model_name
        prepare_name(store, name, store.find_experiment_id(self.study_run.run_key) or store.experiment_id)
        key = selection_key(leaders, self.settings)
        champion = self._finish_open(key) or self._select_and_register(leaders, key)
        if champion:
            self._forget_trainings()  # before the champion is stored: from then on nobody looks for them
            self.study_store.save_champion(key, champion)
        return champion

    def _finish_open(self, key: str) -> Champion | None:
        """Return the champion that a killed promotion of this selection has registered; None if there is none."""
        selected = self.study_store.open_promotion
        if selected is None or not selected.is_of(key):
            return None
        version = finish_registration(self.mlflow_store, self.study, self.settings.model_name, selected.key)
        if version is None:
            return None
        self.context.callback.on_message(
            f"{version.model} version {version.version} is that of a promotion which was cut short; it is used"
        )
        return _champion(selected, version)

    def _select_and_register(self, leaders: Sequence[TrialRecord], key: str) -> Champion | None:
        self.context.callback.on_message(
            f"confirming the best {len(leaders)} of the recipes, {self.settings.seeds} seeds each, "
            f"{self.settings.epochs} epochs"
        )
        self._images_by_data[leaders[0].recipe.data] = self.images
        seed = self.study_store.config.seed
        used = used_seeds(self.mlflow_store.client, self.study, self.settings.model_name)
        model = select_model(leaders, self.settings, seed, self._train, self.images, used)
        if model is None or self.context.interruption.is_requested:
            return None
        run = next(job.run for job in self._jobs if job.recipe == model.recipe)
        selected = SelectedRecipe(f"{key}@{now_ms()}", model.confirmed, model.recipe, len(model.recipes))
        self.study_store.save_promotion(selected)
        candidate, retry = self._candidate(model, selected.key), f"fmnist-search promote {shlex.quote(self.study)}"
        version = register(
            self.mlflow_store, self.settings.model_name, candidate, run, self.context, self._source, retry
        )
        return _champion(selected, version)

    @property
    def study(self) -> str:
        """The name of the study."""
        return self.study_store.config.name

    def _candidate(self, selected: SelectedModel, promotion: str) -> Candidate:
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
                version_tags.PROMOTION: promotion,
                version_tags.SEEDS: ", ".join(map(str, selected.seeds)),
                version_tags.ENSEMBLE: str(self.settings.ensemble),
            },
        )

    def _train(self, named_recipes: Sequence[tuple[str, Recipe]]) -> list[TrialResult]:
        """Train finalists, each in a run below the study's, and return their results."""
        jobs = run_jobs(
            named_recipes,
            self.backend,
            self.context,
            self._make_job,
            max_losses=self.study_store.config.budget.losses,
        )
        self._jobs += [job for job in jobs if job]
        interrupted = not_started("the finalists were interrupted")
        return [(job and job.result) or interrupted for job in jobs]

    def _make_job(self, name: str, recipe: Recipe, requeue: Requeue) -> FinalistJob:
        images, files = self._images_for(recipe.data), self._files
        number = files.number(name, recipe)
        checkpoint = files.load_checkpoint(number, recipe, self.backend.execution, images, self._report(name))
        run_key = files.run_key(number)
        progress = self.context.sender.progress(run_key) if run_key else None
        is_recorded = progress is not None and progress.outcome is not None
        if run_key is None or not self._exists(run_key) or (is_recorded and checkpoint is None):
            run_key, checkpoint = None, None
        run = self._open_run(name, recipe, run_key, is_recorded=is_recorded)
        job = FinalistJob(name, recipe, images, run, self.context, requeue, files)
        job.checkpoint_seconds = self.study_store.config.execution.checkpoint_seconds
        if checkpoint:
            job.resume(checkpoint, is_recorded=is_recorded)
        return job

    def _open_run(self, name: str, recipe: Recipe, run_key: str | None, *, is_recorded: bool) -> TrainingRunLogger:
        """Start the run of a finalist, or go on with the one of this key, which may have everything already."""
        sender = self.context.sender
        if run_key and is_recorded:
            return TrainingRunLogger(sender, run_key, recipe, ())
        tags = {
            tag_names.STUDY: self.study,
            tag_names.KIND: tag_names.FINALIST_RUN,
            tag_names.DEVICE: self.backend.execution.device,
            tag_names.PROCESS: process_identity(),
        }
        arguments = (name, recipe, list(recipe.to_flat_dict()), tags, self.study_run)
        images = self._images_for(recipe.data)
        if run_key:
            return TrainingRunLogger.resume(sender, run_key, *arguments, images=images)
        new_key = new_run_key(self.study_run, name)
        self._files.save_run_key(self._files.number(name, recipe), new_key)
        return TrainingRunLogger.start(sender, *arguments, run_key=new_key, images=images)

    def _exists(self, run_key: str) -> bool:
        """Return whether a run was not deleted; one that MLflow has not created yet exists as well."""
        run_id = self.context.sender.run_id(run_key)
        run = self.mlflow_store.find_run(run_id) if run_id else None
        return run_id is None or (run is not None and run.is_active)

    def _forget_trainings(self) -> None:
        """Remove what lets the trainings of the finalists go on."""
        for run_key in self._files.run_keys():
            self.context.sender.forget_progress(run_key)
        self._files.clear()

    def _report(self, name: str) -> Callable[[str], None]:
        """Return a function that reports a problem with the training of this name."""
        return lambda problem: self.context.callback.on_message(f"{name}: {problem}")

    def _images_for(self, data: Data) -> Images:
        if data not in self._images_by_data:
            self._images_by_data[data] = load_images(data, self._source, self.backend.images_device)
        return self._images_by_data[data]


def _champion(selected: SelectedRecipe, version: RegisteredVersion) -> Champion:
    return selected.registered(
        test=version.test,
        model=version.model,
        version=version.version,
        alias=version.alias,
        verdict=version.verdict,
    )
