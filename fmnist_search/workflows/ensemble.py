"""Several trained runs as one model: judged on images that no member was trained on, and registered where asked."""

from __future__ import annotations

import contextlib
import copy
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmnist_search.config.sections import Finalists
from fmnist_search.data.loading import Images, Source, prepare
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier, Ensemble, pooled
from fmnist_search.registry.champion_rule import Figures, Hits
from fmnist_search.registry.versions import FLATTERED, MEMBER_RUNS
from fmnist_search.reporting.model_card import Origin, from_runs
from fmnist_search.results.study import Listener, State
from fmnist_search.tracking.run_logger import Run
from fmnist_search.tracking.store import Tracking, reaching
from fmnist_search.tracking.stored_runs import TrainedRun, kept_classifier, read_run
from fmnist_search.tracking.training_artifacts import show_network
from fmnist_search.training.evaluation import Evaluation, evaluation_of, predict_logits
from fmnist_search.workflows.jobs import Desk, Interruption, see_off, sending
from fmnist_search.workflows.registration import Candidate, Registered, make_way, register
from fmnist_search.workspace import Home

SPLIT = ("data.validation", "data.seed")
"""What decides which images of a dataset are held back."""


@dataclass(frozen=True)
class Member:
    """A run in an ensemble, and how good its kept weights are on the validation images by themselves."""

    run: TrainedRun
    evaluation: Evaluation


@dataclass(frozen=True)
class Pooled:
    """An ensemble of runs: its members, how good it is on so many validation images, and its run in MLflow.

    `registered` is None where it was not asked for; then it has not met the test images.
    """

    members: tuple[Member, ...]
    evaluation: Evaluation
    images: int
    run_id: str
    registered: Registered | None


def ensemble(
    home: Home,
    run_ids: Sequence[str],
    source: Source,
    listener: Listener,
    *,
    device: str = "cpu",
    registering: bool = False,
    model_name: str | None = None,
) -> Pooled:
    """The mean of several runs' probabilities as one model, judged on their validation images, in a run of its own.

    Everything is computed in float32 on the device. Where `registering`, the ensemble meets the test images once and is
    registered as a promotion would do, by default under the name that models of its dataset have.

    Raises:
        UserError: fewer than two runs, one of them twice, runs of other images than the first, no kept weights, or
            what `registration.register` raises.
    """
    _check_names(run_ids)
    with reaching(home.tracking_uri):
        tracking = Tracking(home.tracking_uri, "fmnist-search")
        runs = [read_run(tracking, run_id) for run_id in run_ids]
        _check_images(runs)
        classifiers = [kept_classifier(home, tracking, run) for run in runs]
        name = model_name or Finalists().of(runs[0].recipe.data.dataset).model_name
        if registering:
            make_way(tracking.client, name, runs[0].experiment_id)
        team = _judged(runs, classifiers, prepare(runs[0].recipe.data, source, device))
        with sending(home, tracking, listener) as sender:
            desk = Desk(sender, listener, Interruption())
            tags = {"kind": "ensemble", "members": ", ".join(run_ids)}
            run = tracking.run_beside(runs[0].run_id, sender, team.name, tags)
            with _ending(run):
                _record(run, team)
                registered = None
                if registering:
                    command = shlex.join(["fmnist-search", "ensemble", *run_ids, "--register", "--model-name", name])
                    registered = register(tracking.client, name, _candidate(team), run, desk, source, command)
            see_off(desk)
    return Pooled(team.members, team.evaluation, len(team.images.validation), run.address, registered)


@dataclass(frozen=True)
class _Team:
    """Runs as one model: their networks, and the logits (N, classes) that these give together on validation."""

    members: tuple[Member, ...]
    classifiers: tuple[Classifier, ...]
    images: Images
    logits: Tensor
    evaluation: Evaluation

    @property
    def name(self) -> str:
        return f"ensemble of {len(self.members)}, first {self.members[0].run.recipe.label}"

    @property
    def origin(self) -> Origin:
        rows = [(member.run.run_id, member.run.recipe, member.evaluation.accuracy) for member in self.members]
        return from_runs(rows, self.evaluation.accuracy)


def _check_names(run_ids: Sequence[str]) -> None:
    if len(run_ids) < 2:
        raise UserError(
            "ensemble: takes two runs or more; `fmnist-search promote` registers a study's best, and `fmnist-search "
            "train` trains a recipe again"
        )
    if twice := [run_id for run_id in run_ids if run_ids.count(run_id) > 1]:
        raise UserError(f"ensemble: run {twice[0]!r} is named twice; name each member once")


def _check_images(runs: Sequence[TrainedRun]) -> None:
    """Refuse runs that cannot be judged on the same images."""
    first = runs[0]
    wanted = first.recipe.flat()
    for run in runs:
        values, name = run.recipe.flat(), f"ensemble: run {run.run_id!r}"
        if not values["data.validation"]:
            raise UserError(
                f"{name}: held no images back for validation, so that nothing can judge it; train it again with "
                f"`fmnist-search train --from-run {run.run_id} --set data.validation=...`"
            )
        if values["data.dataset"] != wanted["data.dataset"]:
            raise UserError(
                f"{name}: learned from {values['data.dataset']!r}, and run {first.run_id!r} from "
                f"{wanted['data.dataset']!r}; take runs of one dataset"
            )
        if off := {key: wanted[key] for key in SPLIT if values[key] != wanted[key]}:
            differs = ", ".join(f"{key} is {values[key]}, there {value}" for key, value in off.items())
            remedy = " ".join(f"--set {key}={value}" for key, value in off.items())
            raise UserError(
                f"{name}: was trained on images that judge run {first.run_id!r} ({differs}); train it again with "
                f"`fmnist-search train --from-run {run.run_id} {remedy}`"
            )


def _judged(runs: Sequence[TrainedRun], classifiers: Sequence[Classifier], images: Images) -> _Team:
    labels = images.validation.labels
    logits = [_logits(classifier, images.validation.pixels) for classifier in classifiers]
    members = tuple(Member(run, evaluation_of(own, labels)) for run, own in zip(runs, logits, strict=True))
    together = pooled(logits)
    return _Team(members, tuple(classifiers), images, together, evaluation_of(together, labels))


def _logits(classifier: Classifier, pixels: Tensor) -> Tensor:
    """Logits by a copy of a classifier in the layout that halves the time on a CPU."""
    model = copy.deepcopy(classifier)
    return predict_logits(model.to(pixels.device, memory_format=torch.channels_last), pixels)  # type: ignore[call-overload]


@contextlib.contextmanager
def _ending(run: Run) -> Iterator[None]:
    """Close a run whatever happens meanwhile."""
    try:
        yield
    except KeyboardInterrupt:
        run.end("KILLED", State.INTERRUPTED.value)
        raise
    except BaseException:
        run.end("FAILED", State.FAILED.value)
        raise
    run.end("FINISHED", State.COMPLETED.value)


def _record(run: Run, team: _Team) -> None:
    """What the run of an ensemble keeps, registered or not."""
    accuracy, images, runs = team.evaluation.accuracy, team.images, [member.run for member in team.members]
    parameters = sum(parameter.numel() for classifier in team.classifiers for parameter in classifier.parameters())
    run.metrics({"val/accuracy": accuracy, "val/loss": team.evaluation.loss, "model/parameters": parameters})
    run.dataset(images, vars(runs[0].recipe.data))
    columns: dict[str, Sequence[object]] = {
        "run": [trained.run_id for trained in runs],
        "name": [trained.name for trained in runs],
        "val_accuracy": [member.evaluation.accuracy for member in team.members],
        "val_loss": [member.evaluation.loss for member in team.members],
    }
    run.table("members.json", columns)
    title = f"{team.name}: {accuracy:.2%} on validation"
    run.note(f"# {title}\n\n{team.origin.told}\n")
    show_network(run, team.logits.softmax(1), images.validation, images.classes, "val", title)


def _candidate(team: _Team) -> Candidate:
    images = team.images
    right = (team.logits.argmax(1) == images.validation.labels).cpu().numpy()
    return Candidate(
        classifier=Ensemble(team.classifiers).eval(),
        recipes=tuple(member.run.recipe for member in team.members),
        classes=images.classes,
        figures=Figures(
            mean=team.evaluation.accuracy,
            deviation=0.0,
            seeds=1,
            images=len(right),
            dataset_digest=images.digest,
            split_digest=images.split_digest,
            hits=Hits(right[None], images.digest, images.split_digest),
        ),
        origin=team.origin,
        tags={
            "ensemble": str(len(team.members)),
            FLATTERED: "by the best epoch of each member",
            MEMBER_RUNS: ", ".join(member.run.run_id for member in team.members),
        },
    )
