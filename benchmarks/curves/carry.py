"""How well a search predicts: from first epochs to last ones, from a constant learning rate to an annealed one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, spearmanr

from benchmarks.curves.table import Curve, CurveTable

RECIPE_COUNTS = (1, 2, 3, 5, 8)
SEED_COUNTS = (1, 3, 5)
BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of `n` pairs with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}, n = {self.n})"


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> Correlation:
    """Return the rank correlation of the first and the second values."""
    data = np.array(pairs)
    drawn = np.random.default_rng(0).integers(0, len(data), (BOOTSTRAP_SAMPLES, len(data)))
    ranks = rankdata(data[drawn], axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a sample of equal values has no correlation
        values = ranks.prod(axis=2).sum(axis=1) / np.sqrt((ranks**2).sum(axis=1).prod(axis=1))
    low, high = np.nanquantile(values, (0.025, 0.975))
    return Correlation(float(spearmanr(data).statistic), float(low), float(high), len(data))


def better_half(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the pairs whose second value is not below the median: those that a search has to rank."""
    middle = statistics.median(second for _, second in pairs)
    return [pair for pair in pairs if pair[1] >= middle]


def epoch_correlations(table: CurveTable, schedule: str) -> list[Correlation]:
    """Return the rank correlation of each earlier epoch with the last one, in the better half, with a schedule."""
    curves = [curve.val_accuracy for curve in table.curves_of_kind(schedule).values() if not curve.failed]
    epochs = range(len(curves[0]) - 1)
    return [rank_correlation(better_half([(curve[epoch], curve[-1]) for curve in curves])) for epoch in epochs]


def confirmed_correlation(table: CurveTable, epoch: int) -> Correlation:
    """Return the rank correlation of an epoch of the search with the last one of an annealed training, other seed."""
    return rank_correlation(better_half(_search_annealed_pairs(table, lambda curve: curve.val_accuracy[epoch])))


def _search_annealed_pairs(table: CurveTable, score: Callable[[Curve], float]) -> list[tuple[float, float]]:
    searched, annealed = table.curves_of_kind("search"), table.curves_of_kind("annealed")
    both = [n for n in annealed if n in searched and not searched[n].failed and not annealed[n].failed]
    return [(score(searched[n]), annealed[n].val_accuracy[-1]) for n in both]


def std_over_seeds(table: CurveTable) -> list[float]:
    """Return the standard deviation over seeds of each epoch's accuracy, pooled over the better half of the recipes."""
    searched = table.curves_of_kind("search")
    kinds = sorted({curve.kind for curve in table.curves if curve.kind.startswith("repeat")})
    repeats = [table.curves_of_kind(kind) for kind in kinds]
    numbers = [n for n in searched if all(n in kind and not kind[n].failed for kind in [searched, *repeats])]
    middle = statistics.median(curve.val_accuracy[-1] for curve in searched.values() if not curve.failed)
    good = [n for n in numbers if searched[n].val_accuracy[-1] >= middle]
    groups = [[kind[n].val_accuracy for kind in [searched, *repeats]] for n in good]
    epochs = range(len(groups[0][0]))
    return [statistics.fmean(statistics.variance(c[e] for c in group) for group in groups) ** 0.5 for e in epochs]


@dataclass(frozen=True)
class AnnealedRecipe:
    """A recipe whose training was annealed from several multiples of its learning rate."""

    recipe_number: int
    learning_rate: float
    searched: float
    values: dict[str, float]


def annealed_recipes(table: CurveTable) -> list[AnnealedRecipe]:
    """Return the final accuracies of the best recipes, annealed from multiples of their constant learning rate."""
    kinds = sorted({curve.kind for curve in table.curves if curve.kind.startswith("annealed x")})
    searched = table.curves_of_kind("search")
    found = []
    for number in sorted(table.curves_of_kind(kinds[0])) if kinds else []:
        curve = searched[number]
        values = {kind.removeprefix("annealed "): table.curves_of_kind(kind)[number].val_accuracy for kind in kinds}
        rate = curve.values["optimizer.learning_rate"]
        assert isinstance(rate, float)
        finals = {kind: value[-1] if value else 0.0 for kind, value in values.items()}
        found.append(AnnealedRecipe(number, rate, curve.val_accuracy[-1], finals))
    return sorted(found, key=lambda one: -one.searched)


@dataclass(frozen=True)
class FinalistOutcome:
    """Recipes confirmed with several seeds: points of accuracy lost on average compared with the best of all."""

    recipes: int
    seeds: int
    best_is_among_them: bool
    lost: float


def simulate_finalists(table: CurveTable, std: float) -> list[FinalistOutcome]:
    """Return what different numbers of finalists and seeds lose.

    The annealed accuracies count as the truth. The search ranks the recipes, and confirming one adds the noise of its
    seeds, with the standard deviation `std` for one seed.
    """
    pairs = np.array(better_half(_search_annealed_pairs(table, lambda curve: curve.val_accuracy[-1])))
    truth = 100 * pairs[np.argsort(-pairs[:, 0]), 1]
    rng = np.random.default_rng(0)
    outcomes = []
    for recipes in RECIPE_COUNTS:
        among = truth[:recipes]
        for seeds in SEED_COUNTS:
            seen = among + rng.normal(0.0, 100 * std / seeds**0.5, (BOOTSTRAP_SAMPLES, len(among)))
            lost = float((truth.max() - among[seen.argmax(1)]).mean())
            outcomes.append(FinalistOutcome(recipes, seeds, bool(among.max() == truth.max()), lost))
    return outcomes


@dataclass(frozen=True)
class TransferAnalysis:
    """The analysis of a table. Correlations by epoch are those of the better half of the recipes."""

    constant: list[Correlation]
    one_cycle: list[Correlation]
    first_rung_to_confirmed: Correlation
    value_to_confirmed: Correlation
    deviation_over_seeds: list[float]
    annealed: list[AnnealedRecipe]
    finalists: list[FinalistOutcome]


def analyze(table: CurveTable) -> TransferAnalysis:
    """Return the analysis of a table."""
    deviations = std_over_seeds(table)
    return TransferAnalysis(
        constant=epoch_correlations(table, "search"),
        one_cycle=epoch_correlations(table, "annealed"),
        first_rung_to_confirmed=confirmed_correlation(table, 0),
        value_to_confirmed=confirmed_correlation(table, -1),
        deviation_over_seeds=deviations,
        annealed=annealed_recipes(table),
        finalists=simulate_finalists(table, deviations[-1]),
    )


def format_analysis(analysis: TransferAnalysis) -> str:
    """Return the analysis as lines of text."""
    lines = ["Spearman's rank correlation with the last epoch, better half of the recipes, 95 % intervals"]
    for schedule, correlations in (("constant", analysis.constant), ("one-cycle", analysis.one_cycle)):
        lines += [f"  {schedule}, epoch {epoch}: {value}" for epoch, value in enumerate(correlations, start=1)]
    deviations = ", ".join(f"{100 * deviation:.2f}" for deviation in analysis.deviation_over_seeds)
    lines += [
        "with the end of an annealed training from another seed",
        f"  first epoch of the search: {analysis.first_rung_to_confirmed}",
        f"  value of the search: {analysis.value_to_confirmed}",
        f"deviation over seeds by epoch, points: {deviations}",
        "the best, annealed at multiples of the rate that won at a constant rate",
    ]
    for one in analysis.annealed:
        values = ", ".join(f"{kind} {value:.2%}" for kind, value in one.values.items())
        lines.append(f"  recipe {one.recipe_number} at {one.learning_rate:.4f}: search {one.searched:.2%}; {values}")
    lines.append("points lost on average against the best recipe of all; * where it is among the finalists")
    lines += [
        f"  {one.recipes:2d} recipes, {one.seeds} seeds: {one.lost:.2f}{' *' * one.best_is_among_them}"
        for one in analysis.finalists
    ]
    return "\n".join(lines)
