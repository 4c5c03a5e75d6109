"""Ensembles of trained runs: evaluated on images that no member was trained on, tested and registered on request."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmnist_search.config.sections import Finalists
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier, Ensemble, average_probabilities
from fmnist_search.registry import tags as version_tags
from fmnist_search.registry.champion_rule import CorrectnessRecord, ValidationScore
from fmnist_search.reporting.model_card import Selection, selection_from_runs
from fmnist_search.results.training import Accuracy, TrialState
from fmnist_search.text import markdown_table
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.stored_runs import TrainedRun, read_run
from fmnist_search.tracking.training_artifacts import log_evaluation_plots
from fmnist_search.training.evaluation import Evaluation, evaluate_logits, predict_logits
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.interruption import Interruption
from fmnist_search.workflows.jobs import JobContext
from fmnist_search.workflows.lookup import load_run_classifier
from fmnist_search.workflows.registration import Candidate, RegisteredVersion, prepare_name, register
from fmnist_search.workflows.sending import open_sender
from fmnist_search.workflows.testing import (
    TestEvaluation,
    check_may_be_tested,
    check_test_set,
    evaluate_each_on_test_set,
    record_evaluation,
)
from fmnist_search.workspace import Workspace

MEMBERS_FILE = "members.json"
SPLIT_KEYS = ("data.validation", "data.seed")
"""The values of a recipe that determine which images of a dataset are held back."""


@dataclass(frozen=True)
class EnsembleMember:
    """A run in an ensemble, and the evaluation of its stored weights alone on the validation images.

    `evaluation` is None if the runs held no images back, `test` if the ensemble was not evaluated on the test images.
    """

    run: TrainedRun
    evaluation: Evaluation | None
    test: Accuracy | None = None


@dataclass(frozen=True)
class EnsembleResult:
    """An ensemble of runs: its members, its evaluation on the validation images, and its run in MLflow.

    `evaluation` is None if the runs held no images back, `test` if it was not evaluated on the test images, and
    `registered` if it was not registered.
    """

    members: tuple[EnsembleMember, ...]
    evaluation: Evaluation | None
    validation_images: int
    run_id: str
    test: Accuracy | None
    registered: RegisteredVersion | None


def build_ensemble(
    run_ids: Sequence[str],
    *,
    workspace: Workspace | None = None,
    callback: StudyCallback | None = None,
    device: str = "cpu",
    should_test: bool = False,
    should_register: bool = False,
    model_name: str | None = None,
    plots: bool = True,
) -> EnsembleResult:
    """Average the probabilities of several runs in one model, evaluate it on their validation images, and record it.

    Everything is computed in float32 on the device. With `should_test`, the ensemble and its members are evaluated once
    on the test images. With `should_register`, they are too, and the ensemble is registered like a promoted model, by
    default under the model name of its dataset. Runs that held no images back can only be tested, and trials and
    finalists of a study only registered.

    Raises:
        UserError: if there are fewer than two runs, a run is named twice, runs have other images than the first,
            weights are missing, or `registration.register` raises it.
    """
    _check_run_ids(run_ids)
    workspace, callback = workspace or Workspace.resolve(), callback or StudyCallback()
    workspace.check_writable()
    source = DataSource.from_workspace(workspace)
    with store_errors(workspace.tracking_uri):
        store = MlflowStore(workspace.tracking_uri, "fmnist-search")
        runs = [read_run(store, run_id) for run_id in run_ids]
        _check_purpose(runs[0], should_test=should_test, should_register=should_register)
        _check_same_split(runs)
        if should_test and not should_register:
            _check_may_be_tested(runs, source)
        classifiers = [load_run_classifier(workspace, store, run) for run in runs]
        name = model_name or Finalists().for_dataset(runs[0].recipe.data.dataset).model_name
        if should_register:
            prepare_name(store, name, runs[0].experiment_id)
        members = _evaluate_members(runs, classifiers, load_images(runs[0].recipe.data, source, device))
        with open_sender(workspace, store, callback) as sender:
            context = JobContext(sender, callback, Interruption(), plots)
            tags = {tag_names.KIND: tag_names.ENSEMBLE_RUN, tag_names.MEMBERS: ", ".join(run_ids)}
            run = store.sibling_run(runs[0].run_id, sender, members.name, tags)
            with _closed_run(run):
                _log_ensemble(run, members, plots=plots)
                registered, test = None, None
                if should_register:
                    command = shlex.join(["fmnist-search", "ensemble", *run_ids, "--register", "--model-name", name])
                    registered = register(store, name, _candidate(members), run, context, source, command)
                    members, test = _test_members(members, source)[0], registered.test
                elif should_test:
                    members, evaluation = _test_members(members, source)
                    dataset = runs[0].recipe.data.dataset
                    test = record_evaluation(run, members.name, dataset, evaluation, plots=plots).accuracy
                if test:
                    run.log_table(MEMBERS_FILE, _member_columns(members.members))
            context.flush()
    images = len(members.images.validation)
    return EnsembleResult(members.members, members.evaluation, images, run.run_key, test, registered)


@dataclass(frozen=True)
class _Members:
    """The members as one model: their networks, and their joint logits (N, classes) on the validation images.

    `logits` and `evaluation` are None if there are no validation images.
    """

    members: tuple[EnsembleMember, ...]
    classifiers: tuple[Classifier, ...]
    images: Images
    logits: Tensor | None
    evaluation: Evaluation | None

    @property
    def name(self) -> str:
        return f"ensemble of {len(self.members)}, first {self.members[0].run.recipe.label}"

    @property
    def selection(self) -> Selection:
        assert self.evaluation, "an ensemble without validation images is not selected"
        rows = [
            (each.run.run_id, each.run.recipe, each.evaluation.accuracy) for each in self.members if each.evaluation
        ]
        return selection_from_runs(rows, self.evaluation.accuracy)

    @property
    def description(self) -> str:
        if self.evaluation:
            return self.selection.description
        rows = [[f"`{each.run.run_id}`", each.run.recipe.label, str(each.run.recipe.seed)] for each in self.members]
        return (
            "An ensemble of runs that were given by their ids. They held no images back for validation, so that it can "
            "only be tested.\n\n" + markdown_table([["run", "network", "seed"], *rows])
        )


def _check_run_ids(run_ids: Sequence[str]) -> None:
    if len(run_ids) < 2:
        raise UserError(
            "ensemble: takes two runs or more; `fmnist-search promote` registers a study's best, and `fmnist-search "
            "train` trains a recipe again"
        )
    if twice := [run_id for run_id in run_ids if run_ids.count(run_id) > 1]:
        raise UserError(f"ensemble: run {twice[0]!r} is named twice; name each member once")


def _check_same_split(runs: Sequence[TrainedRun]) -> None:
    """Raise UserError if the runs were not trained and evaluated on the same images."""
    first = runs[0]
    wanted = first.recipe.to_flat_dict()
    for run in runs:
        values, name = run.recipe.to_flat_dict(), f"ensemble: run {run.run_id!r}"
        if values["data.dataset"] != wanted["data.dataset"]:
            raise UserError(
                f"{name}: was trained on {values['data.dataset']!r}, and run {first.run_id!r} from "
                f"{wanted['data.dataset']!r}; take runs of one dataset"
            )
        if off := {key: wanted[key] for key in SPLIT_KEYS if values[key] != wanted[key]}:
            differs = ", ".join(f"{key} is {values[key]}, there {value}" for key, value in off.items())
            remedy = " ".join(f"--set {key}={value}" for key, value in off.items())
            raise UserError(
                f"{name}: held other images back than run {first.run_id!r} ({differs}); train it again with "
                f"`fmnist-search train --from-run {run.run_id} {remedy}`"
            )


def _check_purpose(run: TrainedRun, *, should_test: bool, should_register: bool) -> None:
    """Raise UserError if a run held no images back for what is asked for."""
    if run.recipe.data.validation or (should_test and not should_register):
        return
    remedy = f"train it again with `fmnist-search train --from-run {run.run_id} --set data.validation=...`" + (
        ", or only test the ensemble with --test" if should_register else ", or add --test for the test images"
    )
    raise UserError(
        f"ensemble: run {run.run_id!r}: held no images back for validation, so that it cannot be evaluated on them; "
        + remedy
    )


def _check_may_be_tested(runs: Sequence[TrainedRun], source: DataSource) -> None:
    for run in runs:
        check_may_be_tested("ensemble", run.run_id, run.kind, "the ensemble with --register")
    check_test_set(runs[0].recipe.data.dataset, source)


def _evaluate_members(runs: Sequence[TrainedRun], classifiers: Sequence[Classifier], images: Images) -> _Members:
    if not len(images.validation):
        return _Members(tuple(EnsembleMember(run, None) for run in runs), tuple(classifiers), images, None, None)
    labels = images.validation.labels
    logits = [_logits(classifier, images.validation.pixels) for classifier in classifiers]
    members = tuple(EnsembleMember(run, evaluate_logits(own, labels)) for run, own in zip(runs, logits, strict=True))
    together = average_probabilities(logits)
    return _Members(members, tuple(classifiers), images, together, evaluate_logits(together, labels))


def _logits(classifier: Classifier, pixels: Tensor) -> Tensor:
    """Return the logits of a copy of a classifier in channels last, which halves the time on a CPU."""
    model = copy.deepcopy(classifier)
    return predict_logits(model.to(pixels.device, memory_format=torch.channels_last), pixels)  # type: ignore[call-overload]


@contextlib.contextmanager
def _closed_run(run: RunLogger) -> Iterator[None]:
    """End a run when the context is left, with the state that fits."""
    try:
        yield
    except KeyboardInterrupt:
        run.end("KILLED", TrialState.INTERRUPTED.value)
        raise
    except BaseException:
        run.end("FAILED", TrialState.FAILED.value)
        raise
    run.end("FINISHED", TrialState.COMPLETED.value)


def _log_ensemble(run: RunLogger, ensemble: _Members, *, plots: bool) -> None:
    """Log the evaluation of an ensemble and its members to its run."""
    evaluation, images = ensemble.evaluation, ensemble.images
    parameters = sum(parameter.numel() for classifier in ensemble.classifiers for parameter in classifier.parameters())
    run.log_metrics({metric_names.PARAMETER_COUNT: parameters})
    run.log_dataset(images, vars(ensemble.members[0].run.recipe.data))
    run.log_table(MEMBERS_FILE, _member_columns(ensemble.members))
    title = ensemble.name
    if evaluation:
        run.log_metrics({metric_names.VAL_ACCURACY: evaluation.accuracy, metric_names.VAL_LOSS: evaluation.loss})
        title += f": {evaluation.accuracy:.2%} on validation"
    run.set_note(f"# {title}\n\n{ensemble.description}\n")
    if plots and ensemble.logits is not None:
        log_evaluation_plots(run, ensemble.logits.softmax(1), images.validation, images.classes, "val", title)


def _test_members(ensemble: _Members, source: DataSource) -> tuple[_Members, TestEvaluation]:
    """Evaluate each member alone on the test images, and all together.

    Only the run of the ensemble records it: trials have no test.
    """
    dataset = ensemble.members[0].run.recipe.data.dataset  # all members have the same
    tests = evaluate_each_on_test_set(ensemble.classifiers, dataset, source)
    members = tuple(
        dataclasses.replace(member, test=test.accuracy) for member, test in zip(ensemble.members, tests, strict=True)
    )
    together = torch.stack([test.probabilities for test in tests]).mean(0)
    return dataclasses.replace(ensemble, members=members), TestEvaluation(together, tests[0].images)


def _member_columns(members: Sequence[EnsembleMember]) -> dict[str, Sequence[object]]:
    columns: dict[str, Sequence[object]] = {
        "run": [member.run.run_id for member in members],
        "name": [member.run.name for member in members],
    }
    if evaluations := [member.evaluation for member in members if member.evaluation]:
        columns["val_accuracy"] = [evaluation.accuracy for evaluation in evaluations]
        columns["val_loss"] = [evaluation.loss for evaluation in evaluations]
    if tests := [member.test for member in members if member.test]:
        columns |= {"test_accuracy": [test.value for test in tests], "test_loss": [test.loss for test in tests]}
    return columns


def _candidate(ensemble: _Members) -> Candidate:
    images = ensemble.images
    assert ensemble.logits is not None, "runs without validation images are refused"
    right = (ensemble.logits.argmax(1) == images.validation.labels).cpu().numpy()
    return Candidate(
        classifier=Ensemble(ensemble.classifiers).eval(),
        recipes=tuple(member.run.recipe for member in ensemble.members),
        classes=images.classes,
        validation_score=ValidationScore.of_one(CorrectnessRecord(right[None], images.digest, images.split_digest)),
        selection=ensemble.selection,
        tags={
            version_tags.ENSEMBLE: str(len(ensemble.members)),
            version_tags.SELECTED_ON_VALIDATION: "by the best epoch of each member",
            version_tags.MEMBER_RUNS: ", ".join(member.run.run_id for member in ensemble.members),
        },
    )
