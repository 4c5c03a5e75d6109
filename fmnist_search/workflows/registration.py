"""A chosen model's way into the registry: tested once, with its card and its record, registered, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflow import MlflowClient

from fmnist_search.data.loading import Source
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier, Ensemble
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import versions
from fmnist_search.registry.champion_rule import Figures, pack
from fmnist_search.registry.evaluation import RIGHT
from fmnist_search.registry.packaging import package
from fmnist_search.reporting.model_card import Card, Origin
from fmnist_search.results.study import Accuracy
from fmnist_search.tracking.run_logger import Run
from fmnist_search.tracking.training_artifacts import show_network
from fmnist_search.workflows.jobs import Desk, see_off
from fmnist_search.workflows.study.finalists import Tested, test_once


@dataclass(frozen=True)
class Candidate:
    """A model that is to be registered: its network with the recipes of its members, and what is known of it.

    `figures` are those on validation images, with their record image by image; `tags` are what its version says of
    itself beside them.
    """

    classifier: Classifier | Ensemble
    recipes: tuple[Recipe, ...]
    classes: Sequence[str]
    figures: Figures
    origin: Origin
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Registered:
    """The version that a candidate has become, its accuracy on the test images, and what came of the comparison."""

    model: str
    version: str
    alias: str
    verdict: str
    test: Accuracy


def make_way(client: MlflowClient, name: str, experiment_id: str) -> None:
    """See that a model can be registered under that name, and clear away what died on its way there.

    Raises:
        UserError: the name is taken.
    """
    versions.check_name(client, name)
    versions.clear_away(client, name, experiment_id)


def register(
    client: MlflowClient, name: str, candidate: Candidate, run: Run, desk: Desk, source: Source, again: str
) -> Registered:
    """Test a candidate once, put that on record in its run, register it from there, and decide who is champion.

    `again` is the command that does all this again. Call it in the main thread, as `package` asks.

    Raises:
        UserError: no whole copy of the test images, MLflow is out of reach, or it has refused the run.
    """
    tested = test_once(candidate.classifier, candidate.recipes[0].data.dataset, source)
    card = _card(name, candidate, tested.accuracy).to_markdown()
    _record(run, candidate, tested, card)
    run_id = _settled(run, desk, again)
    uri = package(candidate.classifier, run_id, candidate.recipes[0].data.dataset, versions.on_the_way(name))
    version = versions.register(client, name, uri, run_id, _tags(candidate, tested), card)
    claim = versions.claim_alias(client, name, version)
    return Registered(name, version, claim.alias, claim.told, tested.accuracy)


def _record(run: Run, candidate: Candidate, tested: Tested, card: str) -> None:
    """What the version's run keeps: it stands there before the version does."""
    test, hits = tested.accuracy, candidate.figures.hits
    run.metrics({"test/accuracy": test.value, "test/accuracy_low": test.low, "test/accuracy_high": test.high})
    if hits:
        run.text(versions.HITS_FILE, hits.to_json())
    run.text(versions.CARD_FILE, card)
    title = f"{candidate.recipes[0].label}: {test.value:.2%} of {test.images:,} test images"
    show_network(run, tested.probabilities, tested.images, candidate.classes, "test", title)


def _settled(run: Run, desk: Desk, again: str) -> str:
    """The id of a run once MLflow has everything of it.

    Raises:
        UserError: MLflow is out of reach, or has refused the run.
    """
    if not see_off(desk):
        raise UserError(f"no model can be registered while MLflow is out of reach; start it, then `{again}`")
    if run.run_id is None:
        raise UserError(f"MLflow has refused the run {run.address}; see `fmnist-search sync`, then `{again}`")
    return run.run_id


def _tags(candidate: Candidate, tested: Tested) -> dict[str, str]:
    return {
        **candidate.tags,
        "network": candidate.recipes[0].label,
        "dataset": candidate.recipes[0].data.dataset,
        "members": "; ".join(f"{recipe.label} seed {recipe.seed}" for recipe in candidate.recipes),
        **versions.tags_of(candidate.figures),
        "test_hits": str(tested.accuracy.hits),
        "test_images": str(tested.accuracy.images),
        "test_evaluations": "1",
        RIGHT: pack(tested.right),
    }


def _card(name: str, candidate: Candidate, test: Accuracy) -> Card:
    figures = candidate.figures
    return Card(
        model=name,
        recipes=candidate.recipes,
        origin=candidate.origin,
        test=test,
        validation_images=figures.images,
        dataset_digest=figures.dataset_digest,
        split_digest=figures.split_digest,
        comparison=versions.UNDECIDED,
    )
