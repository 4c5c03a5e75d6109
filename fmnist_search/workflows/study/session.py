"""The session of a study in this process: images, workers, its run in MLflow, and the interruption."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_search.config.sections import Finalists
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.execution.backend import Backend
from fmnist_search.registry.versions import has_version
from fmnist_search.results.champion import Champion
from fmnist_search.results.study import StopReason, StudySummary, TrialRecord, rank_trials
from fmnist_search.results.training import Stopper
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking import metric_names
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.run_ref import resolve_run_ids
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.training.trial_checkpoints import TrialCheckpoints
from fmnist_search.workflows.jobs import JobContext
from fmnist_search.workflows.lookup import summarize
from fmnist_search.workflows.study.finalists import selection_key
from fmnist_search.workflows.study.promotion import Promotion
from fmnist_search.workflows.study.requests import StudyRequests
from fmnist_search.workflows.study.run_logging import StudyRunLogger
from fmnist_search.workflows.study.search_loop import SearchLoop
from fmnist_search.workflows.study.stopping import current_stop_reason
from fmnist_search.workflows.study.trial_job import SearchContext
from fmnist_search.workflows.study.warm_start import WarmStart
from fmnist_search.workspace import Workspace


@dataclass
class Session:
    """A study with all that it needs to train in this process."""

    workspace: Workspace
    study_store: StudyStore
    checkpoints: TrialCheckpoints
    source: DataSource
    images: Images
    mlflow_store: MlflowStore | None
    study_run: RunLogger
    study_logger: StudyRunLogger
    backend: Backend
    context: JobContext
    warm_starts: Sequence[WarmStart]
    parameter_names: Sequence[str]
    requests: StudyRequests

    def run(self, stopper: Stopper) -> StudySummary:
        """Search until a limit is reached, promote the best recipes, end the study's run, and return the summary."""
        self._enqueue_warm_starts()
        started, previous = time.monotonic(), self._count_ended()
        loop = SearchLoop(self.search_context(stopper), self.study_logger)
        reason = loop.run(self.backend)
        self.study_logger.log_plots(self.study_store.trial_records())  # while the finalists train
        champion = None
        if reason.is_final:
            ranked = rank_trials(self.study_store.trial_records())
            champion = self._promote_best(self.study_store.config.finalists, ranked)
        summary = summarize(
            self.workspace,
            self.study_store,
            self._final_reason(reason),
            new_trials=self._count_ended() - previous,
            seconds=time.monotonic() - started,
            champion=champion,
        )
        self.study_store.tracking_seconds += loop.tracking_seconds
        return self._close(summary)

    def promote(self, settings: Finalists, candidates: Sequence[TrialRecord]) -> StudySummary:
        """Promote the best of these trials, even if the same were promoted before; end the study's run.

        Return the summary of the study.
        """
        champion = self._promote_best(settings, candidates, force=True)
        reason = self._final_reason(current_stop_reason(self.study_store))
        return self._close(summarize(self.workspace, self.study_store, reason, champion=champion))

    def _count_ended(self) -> int:
        return sum(record.is_final for record in self.study_store.trial_records())

    def _final_reason(self, reason: StopReason) -> StopReason:
        """Return the reason for which the session ends; an interruption may also come while finalists train."""
        return StopReason.INTERRUPTED if self.context.interruption.is_requested else reason

    def _enqueue_warm_starts(self) -> None:
        """Report what may be unexpected in this study, and queue its warm starts."""
        config = self.study_store.config
        messages = [*config.warnings, *self.study_store.changes]
        if config.plugins.modules:
            messages.append(f"runs the code of {', '.join(config.plugins.modules)}")
        if names := config.independently_sampled:
            messages.append(f"{config.sampler.name} samples independently: {', '.join(names)}")
        for message in messages:
            self.context.callback.on_message(f"{config.name}: {message}")
        for start in self.warm_starts:
            if message_ := self.study_store.enqueue_start(start.source, start.values):
                self.context.callback.on_message(f"{config.name}: {message_}")

    def search_context(self, stopper: Stopper) -> SearchContext:
        """Return what the trials of this session share; `stopper` is called after each of their epochs."""
        return SearchContext(
            study_store=self.study_store,
            workspace=self.workspace,
            checkpoints=self.checkpoints,
            images=self.images,
            study_run=self.study_run,
            job_context=self.context,
            stopper=stopper,
            requests=self.requests,
            parameter_names=self.parameter_names,
        )

    def _promote_best(
        self, settings: Finalists, candidates: Sequence[TrialRecord], *, force: bool = False
    ) -> Champion | None:
        """Train the first distinct recipes of the candidates, and register the best model.

        Return None if interrupted or if there is none.

        If a search has promoted the same finalists before, the study's champion is returned at once, unless `force`;
        None, with a message, if its version has been deleted in the registry.
        """
        leaders = _distinct_recipes(candidates)[: settings.recipes]
        if not leaders or self.mlflow_store is None:
            return None
        key = selection_key(leaders, settings)
        stored = self.study_store.champion
        if stored and not has_version(self.mlflow_store.client, stored[1].model, stored[1].version):
            self.study_store.mark_champion_deleted()
            stored = None
        if stored and key in (stored[0], self.study_store.searched_selection) and not force:
            return stored[1]  # perhaps of a trial that the user chose after the search had promoted its best
        if self.study_store.deleted_champion_key == key and not force:
            name = self.study_store.config.name
            self.context.callback.on_message(
                f"{name}: the model that it registered has been deleted in MLflow; `fmnist-search promote "
                f"{shlex.quote(name)}` registers its best again"
            )
            return None
        champion = self._make_promotion(settings, self.mlflow_store).run(leaders)
        if champion:
            if not force:
                self.study_store.searched_selection = key
            test, confirmed = champion.test, champion.confirmed_score.mean
            values = {metric_names.TEST_ACCURACY: test.value, metric_names.CONFIRMED_VAL_ACCURACY: confirmed}
            loss = {} if test.loss is None else {metric_names.TEST_LOSS: test.loss}
            self.study_run.log_metrics(values | loss)
        return champion

    def _make_promotion(self, settings: Finalists, mlflow_store: MlflowStore) -> Promotion:
        return Promotion(
            study_store=self.study_store,
            settings=settings,
            workspace=self.workspace,
            mlflow_store=mlflow_store,
            study_run=self.study_run,
            images=self.images,
            backend=self.backend,
            context=self.context,
        )

    def _close(self, summary: StudySummary) -> StudySummary:
        """End the study's run, and return the summary with the ids of the trials' runs, which all exist only then."""
        self.study_logger.close(summary)
        self.context.flush()
        return dataclasses.replace(
            summary, trials=tuple(resolve_run_ids(self.workspace, self.study_store.trial_records()))
        )


def _distinct_recipes(ranked: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the best trial of each recipe, in order."""
    best: dict[str, TrialRecord] = {}
    for record in ranked:
        best.setdefault(record.recipe.seed_independent_key(), record)
    return list(best.values())
