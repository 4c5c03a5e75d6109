"""The comparison of the trials of a study with its runs, its files and its versions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fmnist_search.registry.study_versions import StudyVersion
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.tracking.run_listing import ListedRun
from fmnist_search.tracking.training_run_logger import RUN_STATUS
from fmnist_search.workflows.agreement import Disagreement, StudyListing, compare, compare_versions
from tests.support.records import make_record

CURVE = (0.7, 0.8, 0.9)
OTHER_STATES = (TrialState.PRUNED, TrialState.FAILED, TrialState.INTERRUPTED, TrialState.PAUSED)


def make_trial(number: int, state: TrialState = TrialState.COMPLETED, **changes: Any) -> TrialRecord:
    return make_record(number, state, **{"run_id": f"id{number}", "curve": CURVE, **changes})


def make_run(number: int, state: TrialState = TrialState.COMPLETED, **changes: Any) -> ListedRun:
    run = ListedRun(
        run_id=f"id{number}",
        key=f"study/{number:03d} cnn 4@{number}",
        name=f"{number:03d} cnn 4",
        status=RUN_STATUS[state],
        is_active=True,
        started_ms=1000 * number,
        tags={"kind": "trial", "trial": str(number)},
        metrics={},
        params={},
        points=tuple(enumerate(CURVE, start=1)),
    )
    return dataclasses.replace(run, **changes)


def finalist(**changes: Any) -> ListedRun:
    return make_run(50, tags={"kind": "finalist", "process": "here 1 2"}, points=(), **changes)


HEALTHY = StudyListing(
    trials=[make_trial(0), *(make_trial(number, state) for number, state in enumerate(OTHER_STATES, start=1))],
    runs=[make_run(0), *(make_run(number, state) for number, state in enumerate(OTHER_STATES, start=1))],
    needed_weights=[0],
    stored_weights=[0],
)


def kinds_of(listing: StudyListing) -> list[Disagreement]:
    return [finding.kind for finding in compare(listing)]


def test_stores_that_agree_have_no_findings() -> None:
    assert kinds_of(HEALTHY) == []


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (make_run(0, status="RUNNING"), Disagreement.RUN_OPEN),
        (make_run(0, status="KILLED"), Disagreement.RUN_STATUS),
        (make_run(0, points=((1, 0.7), (3, 0.9))), Disagreement.POINTS_MISSING),
        (make_run(0, points=((1, 0.7), (2, 0.8), (3, 0.91))), Disagreement.POINTS_DIFFER),
        (make_run(0, points=((1, 0.7), (2, 0.8), (2, 0.8), (3, 0.9))), Disagreement.POINTS_TWICE),
        (make_run(0, points=((1, 0.7), (2, 0.8), (3, 0.9), (4, 0.9))), Disagreement.POINTS_UNKNOWN),
    ],
)
def test_each_difference_between_a_trial_and_its_run_is_found(run: ListedRun, kind: Disagreement) -> None:
    findings = compare(dataclasses.replace(HEALTHY, runs=[run, *HEALTHY.runs[1:]]))
    assert [(finding.kind, finding.trial, finding.run_id) for finding in findings] == [(kind, 0, "id0")]


@pytest.mark.parametrize("state", [TrialState.INTERRUPTED, TrialState.PAUSED])
def test_the_points_of_a_trial_that_goes_on_are_left_to_it(state: TrialState) -> None:
    run = make_run(0, state, points=((1, 0.7),))
    assert kinds_of(StudyListing([make_trial(0, state)], runs=[run])) == []
    killed = dataclasses.replace(run, status="RUNNING")
    assert kinds_of(StudyListing([make_trial(0, state)], runs=[killed])) == [Disagreement.RUN_OPEN]


def test_a_run_whose_trial_is_another_or_does_not_exist_is_found() -> None:
    stray = [make_run(7, status="RUNNING"), make_run(0, run_id="second", key="second")]
    listing = dataclasses.replace(HEALTHY, runs=[*HEALTHY.runs, *stray])
    assert [(finding.kind, finding.run_id) for finding in compare(listing)] == [
        (Disagreement.RUN_WITHOUT_TRIAL, "id7"),
        (Disagreement.RUN_WITHOUT_TRIAL, "second"),
    ]
    ended = [dataclasses.replace(run, status="KILLED") for run in stray]
    assert kinds_of(dataclasses.replace(HEALTHY, runs=[*HEALTHY.runs, *ended])) == []


def test_a_trial_without_its_run_is_found_unless_it_was_not_tracked_or_its_run_was_deleted() -> None:
    lost, untracked = make_trial(0), make_trial(1, run_id="")
    deleted = make_run(2, is_active=False, status="RUNNING", points=())
    listing = StudyListing([lost, untracked, make_trial(2)], runs=[deleted])
    assert [(finding.kind, finding.trial) for finding in compare(listing)] == [(Disagreement.RUN_MISSING, 0)]


def test_a_trial_that_was_answered_from_an_earlier_one_shares_its_run() -> None:
    duplicate = make_trial(9, run_id="id0", duplicate_of=0, value=0.9, curve=(0.9,))
    assert kinds_of(dataclasses.replace(HEALTHY, trials=[*HEALTHY.trials, duplicate])) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"pending": {"study/000 cnn 4@0"}},
        {"pending": {"id0"}},
        {"listed_ms": 0},
        {"driver": "here 1 2", "open_trials": [0]},
    ],
)
def test_what_is_on_its_way_is_not_judged(changes: dict[str, Any]) -> None:
    run = make_run(0, status="RUNNING", points=())
    listing = StudyListing([make_trial(0)], runs=[run])
    assert Disagreement.RUN_OPEN in kinds_of(listing)
    assert kinds_of(dataclasses.replace(listing, **changes)) == []


def test_a_trial_that_runs_is_found_if_nothing_searches_the_study() -> None:
    listing = StudyListing([], open_trials=[3], runs=[make_run(3, status="RUNNING")])
    assert kinds_of(listing) == [Disagreement.TRIAL_OPEN]
    assert kinds_of(dataclasses.replace(listing, driver="here 1 2")) == []


@pytest.mark.parametrize(
    ("run", "driver", "is_found"),
    [
        (finalist(status="RUNNING", process_ended=True), None, True),
        (
            finalist(status="RUNNING", process_ended=None),
            None,
            True,
        ),  # on another machine, and nothing drives the study
        (finalist(status="RUNNING", process_ended=False), None, False),
        (finalist(status="RUNNING", process_ended=None), "here 1 2", False),
        (finalist(status="RUNNING", process_ended=True), "here 3 4", True),
        (finalist(status="FINISHED", process_ended=True), None, False),
        (make_run(60, status="RUNNING", tags={"kind": "study"}), None, True),
        (make_run(60, status="RUNNING", tags={"kind": "study"}), "here 1 2", False),
    ],
)
def test_a_run_that_its_process_has_left_open_is_found(run: ListedRun, driver: str | None, is_found: bool) -> None:
    listing = dataclasses.replace(HEALTHY, runs=[*HEALTHY.runs, run], driver=driver)
    assert kinds_of(listing) == [Disagreement.RUN_OPEN] * is_found


def test_missing_weights_and_checkpoints_of_ended_trials_are_found() -> None:
    listing = dataclasses.replace(HEALTHY, stored_weights=[], checkpoints=[0, 3])
    findings = compare(listing)
    assert [(finding.kind, finding.trial) for finding in findings] == [
        (Disagreement.WEIGHTS_MISSING, 0),
        (Disagreement.CHECKPOINT_LEFT, 0),  # trial 3 was interrupted and goes on from its own
    ]
    assert [finding.is_repairable for finding in findings] == [False, True]


def test_without_runs_only_trials_and_files_are_compared() -> None:
    listing = StudyListing([make_trial(0)], open_trials=[1], needed_weights=[0])
    kinds = [finding.kind for finding in compare(listing, tracked=False)]
    assert kinds == [Disagreement.WEIGHTS_MISSING, Disagreement.TRIAL_OPEN]


def test_versions_of_promotions_that_were_cut_short_are_found() -> None:
    tested = {"test_hits": "90"}
    versions = [
        StudyVersion("m", 1, tested, is_abandoned=False),
        StudyVersion("m", 2, tested, is_abandoned=True),
        StudyVersion("m", 3, {"promotion": "key@1"}, is_abandoned=False),
        StudyVersion("m", 4, {"promotion": "key@1", **tested}, is_abandoned=False),
        StudyVersion("m", 5, {"promotion": "key@2", **tested}, is_abandoned=False),
    ]
    assert [(finding.kind, finding.subject) for finding in compare_versions(versions)] == [
        (Disagreement.VERSION_UNDECIDED, "models:/m/2"),
        (Disagreement.VERSION_UNTESTED, "models:/m/3"),
        (Disagreement.VERSION_TWICE, "models:/m/4"),
    ]
