"""The leaderboard: completed trials by accuracy or by cost, and Pareto fronts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fmnist_search.cli.app import (
    JsonOption,
    StorageOption,
    StudyArgument,
    TrackingUriOption,
    WorkdirOption,
    app,
    make_workspace,
)
from fmnist_search.cli.inspect import AllStudiesOption, check_scope
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.results.study import StudySummary, TrialRecord
    from fmnist_search.workspace import Workspace


@app.command()
def leaderboard(
    study: StudyArgument = None,
    show_all: AllStudiesOption = False,
    top: Annotated[int, typer.Option(help="Number of trials to show.", min=1)] = 10,
    by: Annotated[
        str, typer.Option(help="Order: accuracy, or seconds (an epoch), parameters or mult_adds.", metavar="METRIC")
    ] = "accuracy",
    pareto: Annotated[
        str | None,
        typer.Option(
            help="Show the whole Pareto front of accuracy and a cost: seconds (an epoch), parameters or mult_adds.",
            metavar="METRIC",
            show_default=False,
        ),
    ] = None,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the best completed trials of a study, or with --all those of all studies.

    With --by a cost, the cheapest come first; of equal ones the more accurate. A Pareto front has the trials to which
    no other one is at least equal in accuracy and cost and better in one, in ascending order of cost. If the study
    minimizes a cost, those on its front are marked.

    Paused trials follow, with the accuracy that is predicted for them: median and 90 % interval.

    Values from other images or another split cannot be ranked together: with --all, studies with the same images share
    a table of --top trials.

    Examples:

      fmnist-search leaderboard --top 20

      fmnist-search leaderboard --all

      fmnist-search leaderboard --by parameters

      fmnist-search leaderboard small-and-good --pareto mult_adds
    """
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import leader_to_dict
    from fmnist_search.results.study import cost_rank, paused_trials
    from fmnist_search.search.suggest import displayed_names
    from fmnist_search.workflows import lookup

    check_scope(study, show_all=show_all)
    cost = None if by == "accuracy" else _parse_cost("--by", by, "accuracy")
    front_cost = None if pareto is None else _parse_cost("--pareto", pareto)
    if pareto and show_all:
        raise UserError("--pareto: shows the front of one study; leave out --all")
    if pareto and cost:
        raise UserError(f"--by {by}: a front is in ascending order of its cost; leave out --by or --pareto")
    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    if show_all:
        _show_all_leaderboards(workspace, top, cost, as_json=as_json)
        return
    stored = lookup.load_study(workspace, study)
    summary = lookup.summarize_stored(workspace, stored)
    front = _known_front(summary, front_cost) if front_cost else summary.front
    ranked = sorted(summary.ranked_trials, key=lambda trial: cost_rank(trial, cost) if cost else 0)
    trials = front if front_cost else ranked[:top]
    paused = [] if front_cost else paused_trials(summary.trials)[:top]
    if as_json:
        output.print_json([leader_to_dict(trial, front) for trial in (*trials, *paused)])
        return
    names = displayed_names(stored.config, (trial.recipe for trial in (*trials, *paused)))
    metrics = [metric for metric in dict.fromkeys((front_cost or summary.cost_metric, cost)) if metric]
    output.print_table(output.leaderboard_table(trials, names, metrics, front))
    if paused:
        output.print_table(output.paused_table(paused, names))


def _parse_cost(option: str, name: str, *others: str) -> str:
    """Return the cost that an option names: `seconds`, or a metric of a study file."""
    from fmnist_search.results.objectives import COST_LABELS
    from fmnist_search.results.own_costs import find_own_cost

    if name in ("seconds", *COST_LABELS) or find_own_cost(name):
        return "seconds_per_epoch" if name == "seconds" else name
    known = [*others, "seconds", *(metric for metric in COST_LABELS if metric != "seconds_per_epoch")]
    raise UserError(f"{option} {name!r}: is no metric; choose {', '.join(known[:-1])} or {known[-1]}")


def _known_front(summary: StudySummary, metric: str) -> list[TrialRecord]:
    """Return the Pareto front of accuracy and a cost, with a message if trials are left out whose cost is not known."""
    from fmnist_search.cli.output import print_message
    from fmnist_search.results.study import front_trials, trial_cost

    count = len(summary.ranked_trials)
    unknown = sum(trial_cost(trial, metric) is None for trial in summary.ranked_trials)
    if 0 < unknown == count:
        raise UserError(
            f"--pareto {metric}: no trial of study {summary.name!r} has this cost, which earlier versions did not "
            "record; choose seconds or parameters"
        )
    if unknown:
        print_message(f"{summary.name}: left out {unknown} of {count} trials, recorded without {metric}")
    return front_trials(summary.trials, metric)


def _show_all_leaderboards(workspace: Workspace, top: int, cost: str | None, *, as_json: bool) -> None:
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import ranked_trial_to_dict
    from fmnist_search.config.comparability import describe_data
    from fmnist_search.workflows.across_studies import all_studies, leaderboards

    boards = leaderboards(all_studies(workspace=workspace), top, cost)
    if as_json:
        output.print_json([ranked_trial_to_dict(ranked) for board in boards for ranked in board])
        return
    if not boards:
        output.stdout.print("no trial has completed yet")
    for number, board in enumerate(boards):
        start = "\n" if number else ""
        output.stdout.print(f"{start}{describe_data(board[0].study.config)}", markup=False)
        output.print_table(output.ranked_trials_table(board))
