"""The champion of a study, worked out again from the stored trainings, and compared with the registry."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from mlflow import MlflowClient

from benchmarks.soak.invariants import Invariant
from benchmarks.soak.stores import StoredRun
from fmnist_search.config.sections import Finalists
from fmnist_search.registry import tags
from fmnist_search.registry.champion_rule import compare_with_champion
from fmnist_search.registry.versions import all_versions, get_champion, read_validation_score, version_number
from fmnist_search.results.study import TrialRecord, rank_trials
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.workflows.study.finalists import selection_key

FINALIST_NAME = re.compile(r"finalist (\d+) seed \d+ ")


def check_champion(
    study: StudyStore, runs: Sequence[StoredRun], client: MlflowClient, budgets: Sequence[int]
) -> list[Invariant]:
    """Return the invariants of the champion of a study, whose searches have ended with these numbers of trials."""
    records = study.trial_records()
    return [
        Invariant.check("the confirmed recipe is the one with the best mean", _check_selection(study, runs, client)),
        Invariant.check("each selection has made one version", _check_versions(study, records, client, budgets)),
        Invariant.check("the champion is the version that the rule selects", _check_alias(study, client)),
    ]


def leaders(records: Sequence[TrialRecord], settings: Finalists) -> list[TrialRecord]:
    """Return the best trial of each of the best recipes."""
    best: dict[str, TrialRecord] = {}
    for record in rank_trials(records):
        best.setdefault(record.recipe.seed_independent_key(), record)
    return list(best.values())[: settings.recipes]


def expected_versions(records: Sequence[TrialRecord], settings: Finalists, budgets: Sequence[int]) -> int:
    """Return how many versions a study has made: one each time that other recipes were the best at its end."""
    keys = [
        selection_key(leaders([record for record in records if record.number < budget], settings), settings)
        for budget in budgets
    ]
    return sum(key != before for key, before in zip(keys, ["", *keys], strict=False))


def _check_selection(study: StudyStore, runs: Sequence[StoredRun], client: MlflowClient) -> Iterator[str]:
    settings = study.config.finalists
    stored = study.champion
    if stored is None:
        yield "the study has no champion"
        return
    key, champion = stored
    chosen = leaders(study.trial_records(), settings)
    if key != selection_key(chosen, settings):
        yield "the champion was selected from other recipes than the best ones"
    values: dict[int, dict[int, set[float]]] = defaultdict(lambda: defaultdict(set))
    for run in runs:
        name = FINALIST_NAME.match(run.name)
        if name and run.tags.get(tag_names.KIND) == tag_names.FINALIST_RUN and run.status == "FINISHED":
            *_, (_, value) = run.points[metric_names.VAL_ACCURACY]
            values[int(name[1])][int(run.params["seed"])].add(value)
    for trial, by_seed in values.items():
        if unequal := {seed: found for seed, found in by_seed.items() if len(found) > 1}:
            yield f"finalist {trial}: trainings from one seed differ: {unequal}"
    # Each promotion confirms on fresh seeds: the mean is that of the seeds of this one.
    version = client.get_model_version(settings.model_name, champion.version)
    confirming = {int(seed) for seed in version.tags[tags.SEEDS].split(", ")}
    means: dict[int, float] = {}
    for leader in chosen:
        seeds = {seed: found for seed, found in values.get(leader.number, {}).items() if seed in confirming}
        if len(seeds) < settings.seeds:
            yield f"finalist {leader.number} has {len(seeds)} finished trainings of {settings.seeds}"
        else:
            means[leader.number] = statistics.fmean(max(found) for found in seeds.values())
    if means:
        best = max(means, key=lambda trial: means[trial])
        confirmed = champion.confirmed_score
        if means[best] > means.get(confirmed.trial, 0.0) or abs(confirmed.mean - means[best]) > 1e-9:
            yield f"trial {confirmed.trial} is confirmed at {confirmed.mean}, the means of the runs are {means}"


def _check_versions(
    study: StudyStore, records: Sequence[TrialRecord], client: MlflowClient, budgets: Sequence[int]
) -> Iterator[str]:
    settings, name = study.config.finalists, study.config.name
    versions = all_versions(client, settings.model_name)
    own = [number for number, version in versions.items() if version.tags.get(tags.STUDY) == name]
    expected = expected_versions(records, settings, budgets)
    if len(own) != expected:
        yield f"{len(own)} versions, and {expected} selections"
    for number in own:
        if tags.DECISION not in versions[number].tags:
            yield f"version {number} is undecided"
    if study.champion and int(study.champion[1].version) not in own:
        yield f"the study names version {study.champion[1].version}, which is not among {own}"


def _check_alias(study: StudyStore, client: MlflowClient) -> Iterator[str]:
    name = study.config.finalists.model_name
    champion, score = None, None
    for number, version in sorted(all_versions(client, name).items()):
        candidate = read_validation_score(client, version)
        if candidate is None:
            yield f"version {number} has no validation score"
        elif champion is None or compare_with_champion(candidate, score).is_better:
            champion, score = number, candidate
    if champion != version_number(get_champion(client, name)):
        yield f"the rule selects version {champion}, the alias is at {version_number(get_champion(client, name))}"
