"""What replays show: the regret by compute, and the compute to a goal, with intervals."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from matplotlib.figure import Figure

from benchmarks.curves.recorded import Array, RecordedRecipes
from benchmarks.curves.replay import SearchTrace
from fmnist_search.errors import UserError

CHECKPOINTS = (2, 4, 6, 8, 10, 15, 20)
RANDOM_TRAININGS = 100
BOOTSTRAP_SAMPLES = 1000
NO_RESULT = 10.0
"""Regret, in points, from which on it is not shown: most replays have completed no trial, or only bad ones."""

Interval = tuple[float | None, float | None, float | None]


class Summary(TypedDict):
    """The results of a method: medians with the ends of their 95 % intervals; None is more than the budget.

    `to_goal`, `to_best_two` and `to_near_best` say after how much half of the replays have completed a trial that
    reaches this target; the last one is None if the noise is not known.
    """

    to_goal: Interval
    to_best_two: Interval
    to_near_best: Interval | None
    regret_points: dict[str, Interval]


@dataclass(frozen=True)
class Targets:
    """Accuracies of the recorded recipes: the best of all, the second best random one, the goal, and near the best.

    The goal is what a hundred random full trainings reach at the median. Near the best is one standard deviation over
    seeds below it; None if the table has no repeats.
    """

    best: float
    best_two: float
    goal: float
    near_best: float | None = None

    @classmethod
    def of(cls, recorded: RecordedRecipes, draws: int = 1000) -> Targets:
        """Return the targets of a table; the hundred recipes are drawn with repetition, as from an infinite space."""
        accuracies = recorded.random_accuracies
        bests = [
            accuracies[np.random.default_rng(seed).integers(0, len(accuracies), RANDOM_TRAININGS)].max()
            for seed in range(draws)
        ]
        best, noise = float(recorded.final_accuracies.max()), recorded.seed_deviation
        near_best = None if noise is None else best - noise
        return cls(best, float(np.sort(accuracies)[-2]), statistics.median(bests), near_best)


@dataclass(frozen=True)
class Replays:
    """Replays of one method by one clock: for each, when its trials completed, and the best accuracy by then."""

    replays: tuple[tuple[Array, Array], ...]

    @classmethod
    def by_compute(cls, traces: Sequence[SearchTrace]) -> Replays:
        """Return the replays by the compute that all workers have spent."""
        return cls(tuple((np.array(one.compute_spent), np.array(one.best_values)) for one in traces))

    @classmethod
    def by_wall(cls, traces: Sequence[SearchTrace]) -> Replays:
        """Return the replays by the time on the clock."""
        return cls(tuple((np.array(one.wall_times), np.array(one.best_values)) for one in traces))

    def regrets(self, best: float, at: float) -> Array:
        """Return how many points each best accuracy by then is below the best of the table."""
        return 100 * (best - np.array([values[times <= at].max(initial=0.0) for times, values in self.replays]))

    def times_to(self, accuracy: float) -> Array:
        """Return when each replay reached an accuracy; infinite if it did not."""
        return np.array([times[values >= accuracy].min(initial=math.inf) for times, values in self.replays])

    def summarize(self, targets: Targets, end: float) -> Summary:
        """Return the results of the method up to the end of the budget."""
        regrets = {f"{at}": self.regrets(targets.best, at) for at in CHECKPOINTS if at <= end}
        near_best = targets.near_best
        return {
            "to_goal": _interval(self.times_to(targets.goal), _time_of_half),
            "to_best_two": _interval(self.times_to(targets.best_two), _time_of_half),
            "to_near_best": None if near_best is None else _interval(self.times_to(near_best), _time_of_half),
            "regret_points": {at: _interval(values, _median) for at, values in regrets.items()},
        }


def _median(samples: Array) -> Array:
    middle: Array = np.median(samples, axis=-1)
    return middle


def _time_of_half(samples: Array) -> Array:
    times: Array = np.sort(samples, axis=-1)[..., (samples.shape[-1] - 1) // 2]
    return times


def _interval(values: Array, statistic: Callable[[Array], Array]) -> Interval:
    """Return a statistic of the replays with its 95 % bootstrap interval."""
    picks = np.random.default_rng(0).integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))
    # An infinite time cannot be interpolated.
    low, high = np.quantile(statistic(values[picks]), (0.025, 0.975), method="inverted_cdf")
    middle, low, high = (
        None if math.isinf(value) else round(float(value), 3) for value in (statistic(values), low, high)
    )
    return middle, low, high


def summarize(traces: Sequence[SearchTrace], targets: Targets, running: int, compute: float) -> dict[str, Summary]:
    """Return the results of a method by compute, and by time if several trials ran at a time."""
    summaries = {"compute": Replays.by_compute(traces).summarize(targets, compute)}
    if running > 1:
        summaries["wall"] = Replays.by_wall(traces).summarize(targets, compute / running)
    return summaries


# ---------------------------------------------------------------------------------------- tables and files


def describe(about: Mapping[str, Any]) -> list[str]:
    """Return what was replayed, in lines."""
    best, goal, near_best = (about["targets"][name] for name in ("best", "goal", "near_best"))
    near = f"a regret of {100 * (best - near_best):.2f}, the deviation over seeds" if near_best else "not known"
    return [
        f"{about['curves']}: {about['random_recipes']} random recipes and {about['recipes'] - about['random_recipes']} "
        f"neighbours, recorded on {about['recorded_on']}; best {best:.2%}",
        f"{about['running']} at a time; seeds for {about['seeds']}",
        f"in mean full trainings by {about['clock']}, regret in points: medians (95 % intervals)",
        f"goal: what {RANDOM_TRAININGS} random full trainings reach, a regret of {100 * (best - goal):.2f}",
        f"near the best: {near}",
    ]


def table_head() -> str:
    """Return the head of a table of results."""
    return f"{'':40} {'to the goal':>19} {'to the best two':>19} {'near the best':>19} " + "".join(
        f"{f'after {at}':>20}" for at in CHECKPOINTS
    )


def table_lines(method: str, summaries: Mapping[str, Summary]) -> list[str]:
    """Return the lines of a method in a table of results, one for each clock."""
    lines = []
    for clock, summary in summaries.items():
        reached = (summary["to_goal"], summary["to_best_two"], summary["to_near_best"] or (None, None, None))
        times = "".join(f"{format_interval(interval, 1):>20}" for interval in reached)
        regrets = "".join(f"{format_interval(values, 2):>20}" for values in summary["regret_points"].values())
        name = method if len(summaries) == 1 else f"{method}, {clock}"
        lines.append(f"{name:40} {times.removeprefix(' ')} {regrets}")
    return lines


def format_interval(interval: Interval, decimals: int) -> str:
    """Return a median with its interval; `-` is more than the budget, or no result yet."""
    limit = NO_RESULT if decimals == 2 else math.inf
    middle, low, high = ("-" if value is None or value >= limit else f"{value:.{decimals}f}" for value in interval)
    return "-" if middle == low == "-" else f"{middle} ({low} to {high})"


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return the runs of a file of results.

    Raises:
        UserError: if there is no such file, or it holds something else.
    """
    try:
        runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
        assert all(isinstance(run["methods"], dict) for run in runs)
    except (OSError, ValueError, TypeError, KeyError, AssertionError):
        raise UserError(f"{path}: is not a file of replays; name another file") from None
    return runs


def save_results(path: Path, about: Mapping[str, Any], methods: Mapping[str, Mapping[str, Summary]]) -> None:
    """Write results to a file of several runs; those of an earlier run with the same settings are updated.

    Raises:
        UserError: if the file holds something else.
    """
    runs = read_runs(path) if path.exists() else []
    earlier = [run for run in runs if {key: run.get(key) for key in about} == about]
    if not earlier:
        runs.append({**about, "methods": {}})
    (earlier or runs)[-1]["methods"].update(methods)
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


# ---------------------------------------------------------------------------------------- the plot


def plot_results(path: Path, only: str, running: int) -> Figure:
    """Plot the regrets of a file of results, of the methods with `only` in their name, at the checkpoints.

    Raises:
        UserError: if the file has no such replays with the seeds for judging.
    """
    runs = [run for run in read_runs(path) if run["running"] == running and run["seeds"].startswith("judging")]
    chosen = [
        (name, run["methods"][name])
        for run in runs
        for name in run["methods"]
        if any(t in name for t in only.split("|"))
    ]
    if not chosen:
        raise UserError(f"{path}: has no replays of {only!r} with {running} at a time; replay them with --out {path}")
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, summaries in chosen:
        summary = summaries["wall" if running > 1 else "compute"]
        shown = {int(at): values for at, values in summary["regret_points"].items() if values[0] < NO_RESULT}
        middles, lows, highs = zip(*shown.values(), strict=True)
        (line,) = axes.plot([*shown], middles, marker="o", markersize=3, label=name)
        axes.fill_between([*shown], lows, highs, alpha=0.1, color=line.get_color())
    axes.set_xticks(CHECKPOINTS)
    unit = "time with several workers" if running > 1 else "compute"
    axes.set_xlabel(f"{unit}, in mean full trainings")
    axes.set_ylabel("regret of the best completed trial, points: median, 95 % interval")
    axes.set_ylim(0, 5)
    axes.legend(fontsize=8)
    return figure
