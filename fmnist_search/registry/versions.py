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

from fmnist_search.config.sections import NAME
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import text_of
from fmnist_search.registry.champion_rule import Figures, Hits, Verdict, compare
from fmnist_search.results.study import Accuracy
from fmnist_search.training.evaluation import wilson
from fmnist_search.workspace import lock_file

CHAMPION, CHALLENGER = "champion", "challenger"
ALIAS_ATTEMPTS = 20
LOCK_SECONDS = 60
FORGOTTEN_HOURS = 1
"""After so long, an undecided version of another machine counts as left by a promotion that died: deciding takes
seconds."""

DESCRIPTION_LIMIT = 5_000
"""Characters of a version's description: the column in MLflow's database holds no more, and PostgreSQL refuses more."""
UNDECIDED = "It has not been compared with the champion yet: its promotion is on the way, or was cut short."

CLOCK_SECONDS = 5

CARD_FILE, HITS_FILE = "model_card.md", "validation_hits.json"
PROMOTER, DECISION, TOLD, HITS = "promoter", "decision", "comparison", "validation_hits"
CHAMPION_BEFORE, VERSIONS_BEFORE = "champion_before", "versions_before"
REGISTERED_MODEL = "registered_model"
MEMBER_RUNS = "member_runs"
"""Tag of a version that is an ensemble of runs: their ids, with commas between."""
FLATTERED = "flattered"
"""Tag of a version whose validation images have chosen its weights as well, so that its figure is a little too good."""


# ---------------------------------------------------------------------------------------- registering


def check_name(client: MlflowClient, name: str) -> None:
    """Make sure that a model can be registered under that name, before anything is trained for it.

    Raises:
        UserError: it is no name for a model, or MLflow holds a prompt of that name.
    """
    if not re.fullmatch(NAME, name):
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


def on_the_way(name: str) -> dict[str, str]:
    """Tags of a logged model that this process is going to register under that name."""
    return {REGISTERED_MODEL: name, PROMOTER: _this_process()}


def register(
    client: MlflowClient, name: str, model_uri: str, run_id: str, tags: Mapping[str, str], description: str
) -> str:
    """A new version of the registered model, which is made where it is missing; returns the version.

    It appears whole, tags and description with it, and undecided: `claim_alias` decides it.
    """
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model_id = model_uri.removeprefix("models:/")
    tags = {**tags, **_look(client, name), PROMOTER: _this_process()}
    version = client.create_model_version(
        name, source=model_uri, run_id=run_id, tags=tags, description=shortened(description), model_id=model_id
    )
    with contextlib.suppress(MlflowException):  # it is registered, marked or not
        client.delete_logged_model_tag(model_id, PROMOTER)
    return str(version.version)


def clear_away(client: MlflowClient, name: str, experiment_id: str) -> None:
    """Delete the models of an experiment that promotions under this name have logged and did not live to register."""
    logged = client.search_logged_models([experiment_id], filter_string=f"tags.{REGISTERED_MODEL} = '{name}'")
    marked = [model for model in logged if PROMOTER in model.tags]
    registered = {str(version.source) for version in _versions(client, name).values()} if marked else set()
    for model in marked:
        if model.model_uri in registered:
            client.delete_logged_model_tag(model.model_id, PROMOTER)
        elif _is_gone(model.tags[PROMOTER], model.creation_timestamp):
            client.delete_logged_model(model.model_id)
            if model.source_run_id and client.get_run(model.source_run_id).info.status == "RUNNING":
                client.set_terminated(model.source_run_id)


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that holds the champion alias, if any does."""
    return _holder(client, name, CHAMPION)


@dataclass(frozen=True)
class Claim:
    """The alias that a version has come to, and why in words."""

    alias: str
    told: str


def claim_alias(client: MlflowClient, name: str, version: str) -> Claim:
    """Decide a version: the champion's alias if it beats the champion past the noise, else the challenger's.

    Moving an alias is not atomic in MLflow. So promotions of one machine decide one after the other, and those of
    several set right what they find set wrong, until they have read back what follows from the versions. What was
    decided before stays so.

    Raises:
        UserError: the version is not there any more, or the aliases do not come to rest.
    """
    number = int(version)
    with _one_at_a_time(client.tracking_uri):
        standing = _settled_standing(client, name, number)
        for other, held in standing.versions.items():
            if _is_undecided(held) and (other == number or _is_gone(held.tags[PROMOTER], held.creation_timestamp)):
                _decide(client, held, standing.comparison(other))
    told = str(client.get_model_version(name, version).tags[TOLD])
    holder = _number(champion(client, name))
    if holder == number:
        return Claim(CHAMPION, told)
    overtaken = f"; version {holder} has taken its place" if standing.comparison(number).verdict.wins else ""
    return Claim(CHALLENGER, told + overtaken)


def _settled_standing(client: MlflowClient, name: str, number: int) -> _Standing:
    """What follows from the versions, once the aliases say the same."""
    figures: dict[int, Figures | None] = {}
    for attempt in range(ALIAS_ATTEMPTS):
        if attempt > 1:
            time.sleep(random.uniform(0, 0.2))  # whoever else moves them shall not keep in step
        versions = _versions(client, name)
        if number not in versions:
            raise UserError(f"model {name!r}: version {number} was deleted during its promotion; promote again")
        standing = _Standing(client, versions, figures)
        wanted = {CHAMPION: standing.champion, CHALLENGER: standing.challenger}
        wrong = {alias: to for alias, to in wanted.items() if to and to != _number(_holder(client, name, alias))}
        if not wrong or DECISION in versions[number].tags:
            return standing
        for alias, to in wrong.items():
            _insist(functools.partial(client.set_registered_model_alias, name, alias, str(to)))
    raise UserError(f"model {name!r}: the alias {CHAMPION!r} keeps moving; wait for the other promotions, then again")


@dataclass(frozen=True)
class _Comparison:
    """What became of a promoted version beside the champion of those before it, if there was one."""

    verdict: Verdict
    champion: int | None


class _Standing:
    """Who is champion, as it follows from the versions of a model alone.

    Promoted versions are compared in their order, each with the champion of those before it. Who that is at first
    stands on the last version that was made while nothing was undecided: so an alias that was moved by hand counts.
    """

    def __init__(self, client: MlflowClient, versions: Mapping[int, ModelVersion], figures: dict[int, Figures | None]):
        self.versions = versions
        self._client = client
        self._figures = figures
        self.champion, compared = self._until(max(versions))
        self.challenger = max((number for number, made in compared.items() if not made.verdict.wins), default=None)

    def comparison(self, number: int) -> _Comparison:
        """The comparison of a promoted version."""
        return self._until(number)[1][number]

    def _until(self, last: int) -> tuple[int | None, dict[int, _Comparison]]:
        """The champion of the versions up to this one, and the comparisons that made it so."""
        promoted = [number for number in sorted(self.versions) if number <= last and self._tags(number).get(PROMOTER)]
        champion, after = None, 0
        for number in promoted:
            if CHAMPION_BEFORE in self._tags(number):
                champion = int(self._tags(number)[CHAMPION_BEFORE])
                after = int(self._tags(number)[VERSIONS_BEFORE])
        champion = champion if champion in self.versions else None  # 0 is none, and another may have been deleted
        compared: dict[int, _Comparison] = {}
        for number in promoted:
            if number > after:
                compared[number] = _Comparison(self._compare(number, champion), champion)
                champion = number if compared[number].verdict.wins else champion
        return champion, compared

    def _compare(self, number: int, champion: int | None) -> Verdict:
        if champion is None:
            return Verdict(True, "first", "there was none before")
        if FLATTERED in self._tags(number) and FLATTERED not in self._tags(champion):
            reason = "the images that judge it have chosen its weights too, which the champion's have not"
            return Verdict(False, "none", f"{reason}; `fmnist-search evaluate` compares the two on the test images")
        ours, theirs = self._figures_of(number), self._figures_of(champion)
        return compare(ours, theirs) if ours else Verdict(False, "none", "its own figures cannot be read")

    def _figures_of(self, number: int) -> Figures | None:
        if number not in self._figures:
            self._figures[number] = _figures(self._client, self.versions[number])
        return self._figures[number]

    def _tags(self, number: int) -> Mapping[str, str]:
        tags: Mapping[str, str] = self.versions[number].tags
        return tags


def _decide(client: MlflowClient, version: ModelVersion, made: _Comparison) -> None:
    """Write on a version what came of it; the decision itself comes last."""
    number, verdict = str(version.version), made.verdict
    if verdict.wins:
        place = "champion" if made.champion is None else f"champion in the place of version {made.champion}"
    else:
        place = f"challenger of version {made.champion}"
    told = f"version {number} is {place}: {verdict.reason}"
    tags = {TOLD: told, "compared_by": verdict.rule, "compared_with": str(made.champion or "-")}
    if verdict.difference is not None and verdict.error is not None:
        tags |= {"difference": text_of(verdict.difference), "difference_error": text_of(verdict.error)}
    description = (version.description or "").replace(UNDECIDED, f"{told[0].upper()}{told[1:]}.")
    client.update_model_version(version.name, number, shortened(description))
    for key, value in {**tags, DECISION: CHAMPION if verdict.wins else CHALLENGER}.items():
        _insist(functools.partial(client.set_model_version_tag, version.name, number, key, value))


def _insist(act: Callable[[], None]) -> None:
    """Where two set an alias or a tag for the first time at once, MLflow refuses one: by then it can be changed."""
    try:
        act()
    except MlflowException:
        act()


def _look(client: MlflowClient, name: str) -> dict[str, str]:
    """Who is champion and how many versions there are, as tags; none where a promotion is on its way."""
    versions = _versions(client, name)
    holder = champion(client, name)
    if (
        any(_is_undecided(version) for version in versions.values())
        or versions.keys() != _versions(client, name).keys()
    ):
        return {}
    return {CHAMPION_BEFORE: str(_number(holder) or 0), VERSIONS_BEFORE: str(max(versions, default=0))}


def _versions(client: MlflowClient, name: str) -> dict[int, ModelVersion]:
    """All versions of a model by number."""
    found: list[ModelVersion] = []
    token = None
    while token != "":
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        found += page
        token = page.token or ""
    return {int(version.version): version for version in found}


def _holder(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, no such alias
            return None
        raise


def _number(version: ModelVersion | None) -> int | None:
    return int(version.version) if version else None


def _is_undecided(version: ModelVersion) -> bool:
    return PROMOTER in version.tags and DECISION not in version.tags


def tags_of(figures: Figures) -> dict[str, str]:
    """What a version says of its figures on validation images, so that it can be compared."""
    return {
        "dataset_digest": figures.dataset_digest,
        "split_digest": figures.split_digest,
        "validation_images": str(figures.images),
        "confirmed_mean": text_of(figures.mean),
        "confirmed_deviation": text_of(figures.deviation),
        "confirmed_seeds": str(figures.seeds),
        **({HITS: HITS_FILE} if figures.hits else {}),
    }


def _figures(client: MlflowClient, version: ModelVersion) -> Figures | None:
    """The confirmed figures of a version with its record of validation images; None where it has none of ours."""
    tags = version.tags
    try:
        figures = Figures(
            mean=float(tags["confirmed_mean"]),
            deviation=float(tags["confirmed_deviation"]),
            seeds=int(tags["confirmed_seeds"]),
            images=int(tags["validation_images"]),
            dataset_digest=tags["dataset_digest"],
            split_digest=tags["split_digest"],
        )
    except (KeyError, ValueError):
        return None
    if figures.seeds < 1 or figures.images < 1:
        return None
    return dataclasses.replace(figures, hits=_hits(client, version, figures))


def _hits(client: MlflowClient, version: ModelVersion, figures: Figures) -> Hits | None:
    """The record that a version's run holds, if it is about the images of its figures."""
    if HITS not in version.tags or not version.run_id:
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            hits = Hits.from_json(
                Path(client.download_artifacts(version.run_id, version.tags[HITS], folder)).read_text()
            )
    except (MlflowException, OSError, ValueError):
        return None
    digests = (hits.dataset_digest, hits.split_digest)
    return hits if digests == (figures.dataset_digest, figures.split_digest) else None


def shortened(description: str) -> str:
    """A description as long as MLflow holds one, which says where it was cut."""
    if len(description) <= DESCRIPTION_LIMIT:
        return description
    end = f"\n\n*Cut at MLflow's limit; the whole card is the artifact `{CARD_FILE}` of this version's run.*"
    return description[: DESCRIPTION_LIMIT - len(end)] + end


# ------------------------------------------------------------------------------- who promotes, and who died


def _this_process() -> str:
    """Names this process among all that ever were, on all machines."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _is_gone(promoter: str, at: int) -> bool:
    """Whether the process that left this mark, at such a time in milliseconds, will not go on."""
    machine, _, process = promoter.partition(" ")
    if machine != socket.gethostname():
        return time.time() - at / 1000 > FORGOTTEN_HOURS * 3600
    number, _, started = process.partition(" ")
    try:
        # The clock may have been set since; no process gets a number again so soon.
        return abs(float(psutil.Process(int(number)).create_time()) - float(started)) > CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def _one_at_a_time(tracking_uri: str) -> Iterator[None]:
    """One promotion of this user on this machine after the other; without, the aliases come right all the same."""
    path = lock_file(tracking_uri)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # nowhere to write, or somebody holds it for too long
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(path).acquire(timeout=LOCK_SECONDS))
        yield


# ------------------------------------------------------------------------------- the test images' record


def version_of(client: MlflowClient, uri: str) -> ModelVersion:
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
        detail = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"model {uri!r}: does not exist ({detail[:200]}); run a search first, or name one such as "
            "models:/fmnist-search/1"
        ) from None


def test_record(version: ModelVersion) -> tuple[Accuracy, int] | None:
    """What a version reached on the test images, and how often it was tested; None where it never was."""
    if "test_hits" not in version.tags:
        return None
    accuracy = wilson(int(version.tags["test_hits"]), int(version.tags["test_images"]))
    return accuracy, int(version.tags.get("test_evaluations", "1"))


def record_test(client: MlflowClient, version: ModelVersion, accuracy: Accuracy) -> int:
    """Put a look at the test images on a version's record; returns how many there have been."""
    known = test_record(version)
    evaluations = (known[1] if known else 0) + 1
    tags = {"test_hits": accuracy.hits, "test_images": accuracy.images, "test_evaluations": evaluations}
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), key, str(value))
    return evaluations
