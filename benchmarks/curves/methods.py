"""The searches that are compared: pairs of a sampler and a pruner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_search.config.pruners import (
    Extrapolation,
    Halving,
    Hyperband,
    Median,
    NoPruner,
    OneEpoch,
    Percentile,
    Pruner,
)
from fmnist_search.config.samplers import FreezeThaw, Gp, Qmc, Random, Sampler, Tpe
from fmnist_search.errors import UserError


@dataclass(frozen=True)
class Method:
    """A sampler and a pruner. The one-epoch rule needs the number of trials."""

    name: str
    sampler: Sampler
    pruner: Pruner
    trials: int = 10_000


METHODS = (
    Method("random, every training full", Random(), NoPruner()),
    Method("tpe, every training full", Tpe(), NoPruner()),
    Method("tpe, median", Tpe(), Median()),
    Method("tpe, percentile 25", Tpe(), Percentile()),
    Method("tpe, hyperband", Tpe(), Hyperband()),
    Method("random, hyperband", Random(), Hyperband()),
    Method("random, halving", Random(), Halving()),
    Method("qmc, halving", Qmc(), Halving()),
    Method("gp, halving", Gp(), Halving()),
    Method("tpe, halving", Tpe(), Halving()),
    Method("tpe, extrapolation", Tpe(), Extrapolation()),
    Method("freeze-thaw", FreezeThaw(), NoPruner()),
    *(Method(f"one-epoch rule, {n} candidates", Random(), OneEpoch(), n + 3) for n in (10, 20, 40, 80)),
)
SWEEP_METHODS = (
    *(
        Method(
            f"tpe {startup}, halving 1/{factor} at {first}",
            Tpe(startup_trials=startup),
            Halving(min_epochs=first, reduction_factor=factor),
        )
        for startup in (5, 10)
        for first in (1, 2)
        for factor in (2, 3, 4)
    ),
    Method("tpe 5, halving 1/3 at 2, 8 spared", Tpe(), Halving(startup_trials=8)),
    # A replay has at most as many trials as there are recorded recipes, so larger windows change nothing.
    *(Method(f"tpe, window {window or 'none'}", Tpe(window=window), Halving()) for window in (0, 25, 50, 100)),
)


def select_methods(only: str, sweep: bool) -> Sequence[Method]:
    """Return the methods whose name contains a text, or one of several that are separated by `|`.

    Raises:
        UserError: if there is none.
    """
    known = SWEEP_METHODS if sweep else METHODS
    selected = [method for method in known if any(text in method.name for text in only.split("|"))]
    if not selected:
        raise UserError(f"--only {only!r}: no such method; known: {', '.join(method.name for method in known)}")
    return selected
