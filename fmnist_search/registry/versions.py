"""MLflow's model registry: register a model, decide who is champion, keep the record of the test images.

Several promotions may run at once, on several machines, and any of them may be killed. A version appears in one step,
with all that is to be known of it, and MLflow numbers versions in one order. So who is champion follows from the
versions alone, and every promotion comes to the same answer; a version stays undecided until its own promotion has
seen that the alias agrees. What a killed one leaves undecided, the next one decides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import random
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fmnist_search.config.sections import NAME_PATTERN
from fmnist_search.errors import UserError
from fmnist_search.recipe.formatting import format_value
from fmnist_search.registry.champion_rule import (
    ComparisonResult,
    CorrectnessRecord,
    ValidationScore,
    compare_with_champion,
)
from fmnist_search.results.statistics import wilson
from fmnist_search.results.training import Accuracy
from fmnist_search.text import first_line
from fmnist_search.workspace import lock_file

CHAMPION, CHALLENGER = "champion", "challenger"
ALIAS_ATTEMPTS = 20
LOCK_TIMEOUT_SECONDS = 60
ABANDONED_AFTER_HOURS = 1
"""After so long, an undecided version of another machine counts as left by a promotion that died: deciding takes
seconds."""

DESCRIPTION_LIMIT = 5_000
"""Characters of a version's description: the column in MLflow's database holds no more, and PostgreSQL refuses more."""
UNDECIDED_NOTE = "It has not been compared with the champion yet: its promotion is on the way, or was cut short."

CLOCK_TOLERANCE_SECONDS = 5

MODEL_CARD_FILE, CORRECTNESS_FILE = "model_card.md", "validation_hits.json"
PROMOTER_TAG, DECISION_TAG, COMPARISON_TAG, CORRECTNESS_TAG = "promoter", "decision", "comparison", "validation_hits"
PREVIOUS_CHAMPION_TAG, PREVIOUS_VERSIONS_TAG = "champion_before", "versions_before"
REGISTERED_MODEL_TAG = "registered_model"
MEMBER_RUNS_TAG = "member_runs"
"""Tag of a version that is an ensemble of runs: their ids, with commas between."""
SELECTED_ON_VALIDATION_TAG = "flattered"
"""Tag of a version whose validation images have chosen its weights as well, so that its figure is a little too good."""


# ---------------------------------------------------------------------------------------- registering


def check_model_name(client: MlflowClient, name: str) -> None:
    """Make sure that a model can be registered under that name, before anything is trained for it.

    Raises:
        UserError: it is no name for a model, or MLflow holds a prompt of that name.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(
            f"finalists.model_name: {name!r} is no usable name; use letters, digits, spaces and . _ + @ - "
            "(--model-name)"
        )
    try:
        client.get_registered_model(name)
    except MlflowException:  # there is none, or it is a prompt, which MLflow says of neither
        if client.get_prompt(name):
            raise UserError(
                f"finalists.model_name: {name!r} is the name of a prompt in MLflow; choose another (--model-name)"
            ) from None


def pending_tags(name: str) -> dict[str, str]:
    """Tags of a logged model that this process is going to register under that name."""
    return {REGISTERED_MODEL_TAG: name, PROMOTER_TAG: _process_identity()}


def register_version(
    client: MlflowClient, name: str, model_uri: str, run_id: str, tags: Mapping[str, str], description: str
) -> str:
    """A new version of the registered model, which is made where it is missing; returns the version.

    It appears whole, tags and description with it, and undecided: `decide_alias` decides it.
    """
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model_id = model_uri.removeprefix("models:/")
    tags = {**tags, **snapshot(client, name), PROMOTER_TAG: _process_identity()}
    version = client.create_model_version(
        name,
        source=model_uri,
        run_id=run_id,
        tags=tags,
        description=truncate_description(description),
        model_id=model_id,
    )
    with contextlib.suppress(MlflowException):  # it is registered, marked or not
        client.delete_logged_model_tag(model_id, PROMOTER_TAG)
    return str(version.version)


def delete_orphans(client: MlflowClient, name: str, experiment_id: str) -> None:
    """Delete the models of an experiment that promotions under this name have logged and did not live to register."""
    logged = client.search_logged_models([experiment_id], filter_string=f"tags.{REGISTERED_MODEL_TAG} = '{name}'")
    marked = [model for model in logged if PROMOTER_TAG in model.tags]
    registered = {str(version.source) for version in _all_versions(client, name).values()} if marked else set()
    for model in marked:
        if model.model_uri in registered:
            client.delete_logged_model_tag(model.model_id, PROMOTER_TAG)
        elif process_is_dead(model.tags[PROMOTER_TAG], model.creation_timestamp):
            client.delete_logged_model(model.model_id)
            if model.source_run_id and client.get_run(model.source_run_id).info.status == "RUNNING":
                client.set_terminated(model.source_run_id)


def get_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that holds the champion alias, if any does."""
    return _version_with_alias(client, name, CHAMPION)


@dataclass(frozen=True)
class AliasDecision:
    """The alias that a version has come to, and why in words."""

    alias: str
    reason: str


def decide_alias(client: MlflowClient, name: str, version: str) -> AliasDecision:
    """Decide a version: the champion's alias if it beats the champion past the noise, else the challenger's.

    Moving an alias is not atomic in MLflow. So promotions of one machine decide one after the other, and those of
    several set right what they find set wrong, until they have read back what follows from the versions. What was
    decided before stays so.

    Raises:
        UserError: the version is not there any more, or the aliases do not come to rest.
    """
    number = int(version)
    with _promotion_lock(client.tracking_uri):
        standing = _settle_aliases(client, name, number)
        for other, held in standing.versions.items():
            if _is_undecided(held) and (
                other == number or process_is_dead(held.tags[PROMOTER_TAG], held.creation_timestamp)
            ):
                _write_decision(client, held, standing.comparison(other))
    told = str(client.get_model_version(name, version).tags[COMPARISON_TAG])
    holder = _version_number(get_champion(client, name))
    if holder == number:
        return AliasDecision(CHAMPION, told)
    overtaken = f"; version {holder} has taken its place" if standing.comparison(number).result.is_better else ""
    return AliasDecision(CHALLENGER, told + overtaken)


def _settle_aliases(client: MlflowClient, name: str, version_number: int) -> ChampionHistory:
    """What follows from the versions, once the aliases say the same."""
    figures: dict[int, ValidationScore | None] = {}
    for attempt in range(ALIAS_ATTEMPTS):
        if attempt > 1:
            time.sleep(random.uniform(0, 0.2))  # whoever else moves them shall not keep in step
        versions = _all_versions(client, name)
        if version_number not in versions:
            raise UserError(f"model {name!r}: version {version_number} was deleted during its promotion; promote again")
        standing = ChampionHistory(client, versions, figures)
        wanted = {CHAMPION: standing.champion, CHALLENGER: standing.challenger}
        wrong = {
            alias: to
            for alias, to in wanted.items()
            if to and to != _version_number(_version_with_alias(client, name, alias))
        }
        if not wrong or DECISION_TAG in versions[version_number].tags:
            return standing
        for alias, to in wrong.items():
            retry_once(functools.partial(client.set_registered_model_alias, name, alias, str(to)))
    raise UserError(f"model {name!r}: the alias {CHAMPION!r} keeps moving; wait for the other promotions, then again")


@dataclass(frozen=True)
class _VersionComparison:
    """What became of a promoted version beside the champion of those before it, if there was one."""

    result: ComparisonResult
    champion: int | None


class ChampionHistory:
    """Who is champion, as it follows from the versions of a model alone.

    Promoted versions are compared in their order, each with the champion of those before it. Who that is at first
    stands on the last version that was made while nothing was undecided: so an alias that was moved by hand counts.
    """

    def __init__(
        self, client: MlflowClient, versions: Mapping[int, ModelVersion], scores: dict[int, ValidationScore | None]
    ):
        self.versions = versions
        self._client = client
        self._scores = scores
        self.champion, compared = self._replay(max(versions))
        self.challenger = max((number for number, made in compared.items() if not made.result.is_better), default=None)

    def comparison(self, number: int) -> _VersionComparison:
        """The comparison of a promoted version."""
        return self._replay(number)[1][number]

    def _replay(self, last_number: int) -> tuple[int | None, dict[int, _VersionComparison]]:
        """The champion of the versions up to this one, and the comparisons that made it so."""
        promoted = [
            number for number in sorted(self.versions) if number <= last_number and self._tags(number).get(PROMOTER_TAG)
        ]
        champion, after = None, 0
        for number in promoted:
            if PREVIOUS_CHAMPION_TAG in self._tags(number):
                champion = int(self._tags(number)[PREVIOUS_CHAMPION_TAG])
                after = int(self._tags(number)[PREVIOUS_VERSIONS_TAG])
        champion = champion if champion in self.versions else None  # 0 is none, and another may have been deleted
        compared: dict[int, _VersionComparison] = {}
        for number in promoted:
            if number > after:
                compared[number] = _VersionComparison(self._compare(number, champion), champion)
                champion = number if compared[number].result.is_better else champion
        return champion, compared

    def _compare(self, number: int, champion: int | None) -> ComparisonResult:
        if champion is None:
            return ComparisonResult(True, "first", "there was none before")
        if SELECTED_ON_VALIDATION_TAG in self._tags(number) and SELECTED_ON_VALIDATION_TAG not in self._tags(champion):
            reason = "the images that judge it have chosen its weights too, which the champion's have not"
            return ComparisonResult(
                False, "none", f"{reason}; `fmnist-search evaluate` compares the two on the test images"
            )
        ours, theirs = self._score_of(number), self._score_of(champion)
        return (
            compare_with_champion(ours, theirs)
            if ours
            else ComparisonResult(False, "none", "its own figures cannot be read")
        )

    def _score_of(self, number: int) -> ValidationScore | None:
        if number not in self._scores:
            self._scores[number] = _read_score(self._client, self.versions[number])
        return self._scores[number]

    def _tags(self, number: int) -> Mapping[str, str]:
        tags: Mapping[str, str] = self.versions[number].tags
        return tags


def _write_decision(client: MlflowClient, version: ModelVersion, comparison: _VersionComparison) -> None:
    """Write on a version what came of it; the decision itself comes last."""
    number, verdict = str(version.version), comparison.result
    if verdict.is_better:
        place = "champion" if comparison.champion is None else f"champion in the place of version {comparison.champion}"
    else:
        place = f"challenger of version {comparison.champion}"
    told = f"version {number} is {place}: {verdict.reason}"
    tags = {COMPARISON_TAG: told, "compared_by": verdict.method, "compared_with": str(comparison.champion or "-")}
    if verdict.difference is not None and verdict.standard_error is not None:
        tags |= {
            "difference": format_value(verdict.difference),
            "difference_error": format_value(verdict.standard_error),
        }
    description = (version.description or "").replace(UNDECIDED_NOTE, f"{told[0].upper()}{told[1:]}.")
    client.update_model_version(version.name, number, truncate_description(description))
    for key, value in {**tags, DECISION_TAG: CHAMPION if verdict.is_better else CHALLENGER}.items():
        retry_once(functools.partial(client.set_model_version_tag, version.name, number, key, value))


def retry_once(action: Callable[[], None]) -> None:
    """Where two set an alias or a tag for the first time at once, MLflow refuses one: by then it can be changed."""
    try:
        action()
    except MlflowException:
        action()


def snapshot(client: MlflowClient, name: str) -> dict[str, str]:
    """Who is champion and how many versions there are, as tags; none where a promotion is on its way."""
    versions = _all_versions(client, name)
    holder = get_champion(client, name)
    if (
        any(_is_undecided(version) for version in versions.values())
        or versions.keys() != _all_versions(client, name).keys()
    ):
        return {}
    return {
        PREVIOUS_CHAMPION_TAG: str(_version_number(holder) or 0),
        PREVIOUS_VERSIONS_TAG: str(max(versions, default=0)),
    }


def _all_versions(client: MlflowClient, name: str) -> dict[int, ModelVersion]:
    """All versions of a model by number."""
    found: list[ModelVersion] = []
    token = None
    while token != "":
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        found += page
        token = page.token or ""
    return {int(version.version): version for version in found}


def _version_with_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, no such alias
            return None
        raise


def _version_number(version: ModelVersion | None) -> int | None:
    return int(version.version) if version else None


def _is_undecided(version: ModelVersion) -> bool:
    return PROMOTER_TAG in version.tags and DECISION_TAG not in version.tags


def score_tags(score: ValidationScore) -> dict[str, str]:
    """What a version says of its figures on validation images, so that it can be compared."""
    return {
        "dataset_digest": score.dataset_digest,
        "split_digest": score.split_digest,
        "validation_images": str(score.images),
        "confirmed_mean": format_value(score.mean),
        "confirmed_deviation": format_value(score.std),
        "confirmed_seeds": str(score.seeds),
        **({CORRECTNESS_TAG: CORRECTNESS_FILE} if score.correctness else {}),
    }


def _read_score(client: MlflowClient, version: ModelVersion) -> ValidationScore | None:
    """The confirmed figures of a version with its record of validation images; None where it has none of ours."""
    tags = version.tags
    try:
        figures = ValidationScore(
            mean=float(tags["confirmed_mean"]),
            std=float(tags["confirmed_deviation"]),
            seeds=int(tags["confirmed_seeds"]),
            images=int(tags["validation_images"]),
            dataset_digest=tags["dataset_digest"],
            split_digest=tags["split_digest"],
        )
    except (KeyError, ValueError):
        return None
    if figures.seeds < 1 or figures.images < 1:
        return None
    return dataclasses.replace(figures, correctness=_read_correctness(client, version, figures))


def _read_correctness(client: MlflowClient, version: ModelVersion, score: ValidationScore) -> CorrectnessRecord | None:
    """The record that a version's run holds, if it is about the images of its figures."""
    if CORRECTNESS_TAG not in version.tags or not version.run_id:
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            hits = CorrectnessRecord.from_json(
                Path(client.download_artifacts(version.run_id, version.tags[CORRECTNESS_TAG], folder)).read_text()
            )
    except (MlflowException, OSError, ValueError):
        return None
    digests = (hits.dataset_digest, hits.split_digest)
    return hits if digests == (score.dataset_digest, score.split_digest) else None


def truncate_description(description: str) -> str:
    """A description as long as MLflow holds one, which says where it was cut."""
    if len(description) <= DESCRIPTION_LIMIT:
        return description
    end = f"\n\n*Cut at MLflow's limit; the whole card is the artifact `{MODEL_CARD_FILE}` of this version's run.*"
    return description[: DESCRIPTION_LIMIT - len(end)] + end


# ------------------------------------------------------------------------------- who promotes, and who died


def _process_identity() -> str:
    """Names this process among all that ever were, on all machines."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def process_is_dead(promoter: str, created_at_ms: int) -> bool:
    """Whether the process that left this mark, at such a time in milliseconds, will not go on."""
    machine, _, process = promoter.partition(" ")
    if machine != socket.gethostname():
        return time.time() - created_at_ms / 1000 > ABANDONED_AFTER_HOURS * 3600
    number, _, started = process.partition(" ")
    try:
        # The clock may have been set since; no process gets a number again so soon.
        return abs(float(psutil.Process(int(number)).create_time()) - float(started)) > CLOCK_TOLERANCE_SECONDS
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def _promotion_lock(tracking_uri: str) -> Iterator[None]:
    """One promotion of this user on this machine after the other; without, the aliases come right all the same."""
    path = lock_file(tracking_uri)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # nowhere to write, or somebody holds it for too long
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(path).acquire(timeout=LOCK_TIMEOUT_SECONDS))
        yield


# ------------------------------------------------------------------------------- the test images' record


def get_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version behind an address such as models:/name@champion or models:/name/3.

    Raises:
        UserError: there is none.
    """
    name, _, alias = uri.removeprefix("models:/").rpartition("@")
    if not name or "/" in alias:
        name, alias = uri.removeprefix("models:/"), ""
    try:
        if not uri.startswith("models:/"):
            raise UserError(f"model {uri!r}: is no address of a registered model; write models:/fmnist-search@champion")
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(*name.split("/"))
    except (MlflowException, TypeError) as error:
        detail = first_line(error)
        raise UserError(
            f"model {uri!r}: does not exist ({detail[:200]}); run a search first, or name one such as "
            "models:/fmnist-search/1"
        ) from None


def read_test_result(version: ModelVersion) -> tuple[Accuracy, int] | None:
    """What a version reached on the test images, and how often it was tested; None where it never was."""
    if "test_hits" not in version.tags:
        return None
    accuracy = wilson(int(version.tags["test_hits"]), int(version.tags["test_images"]))
    return accuracy, int(version.tags.get("test_evaluations", "1"))


def record_test_evaluation(client: MlflowClient, version: ModelVersion, accuracy: Accuracy) -> int:
    """Put a look at the test images on a version's record; returns how many there have been."""
    known = read_test_result(version)
    evaluations = (known[1] if known else 0) + 1
    tags = {"test_hits": accuracy.hits, "test_images": accuracy.images, "test_evaluations": evaluations}
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), key, str(value))
    return evaluations
