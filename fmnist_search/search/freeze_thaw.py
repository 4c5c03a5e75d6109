"""The rule of freeze-thaw: each epoch goes to the recipe that promises most for the epochs that it still needs.

After each epoch, and whenever a worker is free, the rule compares all paused trials and some new recipes: by the
expected improvement of the accuracy after the last epoch over the best completed trial, divided by the number of epochs
until then. `curve_model` predicts that accuracy. The idea to pause trainings and to resume those that promise most is
of Swersky, Snoek and Adams (2014), arXiv 1406.3896; they choose by entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.special import ndtr, ndtri

from fmnist_search.results.study import Prediction
from fmnist_search.search.curve_model import Array, CurveModel, Curves, Integers, to_accuracy, to_target

FIRST_TRIALS = 3
"""So many trials begin at random, before there is a model."""

MAX_WHOLE_CURVES, MAX_OBSERVATIONS = 60, 400
"""The model has the whole curves of the best trials, and of the others the last epochs, within these limits."""

CHANCE = 0.1
"""The accuracy that the first completed trial has to beat: with less to beat, a trial soon promises to complete."""

GROWTH = 1.5
"""The parameters of the model are fitted again when there are so many times as many observations."""


class Status(Enum):
    """What a trial does: only a paused one can be chosen."""

    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


@dataclass(frozen=True)
class KnownTrial:
    """A trial that has begun: the features of its recipe (d,) in 0..1, and its accuracy after each epoch."""

    features: Array
    curve: Mapping[int, float]
    status: Status


@dataclass(frozen=True)
class Choice:
    """What the next epoch goes to: a place among the trials, or among the candidates; the other is None."""

    trial: int | None = None
    candidate: int | None = None


class FreezeThaw:
    """The rule for trials of `last_epoch` epochs.

    `parameters` are those of the model; they were fitted to `fitted_observations` observations. With both stored and
    given again, the choices depend on nothing else than the trials and the candidates.
    """

    def __init__(self, last_epoch: int, parameters: Array | None = None, fitted_observations: int = 0):
        self.last_epoch = last_epoch
        self.parameters = parameters
        self.fitted_observations = fitted_observations
        self._last: tuple[Sequence[KnownTrial], CurveModel] | None = None

    def choose(self, trials: Sequence[KnownTrial], candidates: Array) -> Choice:
        """Return what the next epoch goes to; `candidates` (n, d) are the features of new recipes.

        Without candidates and without a paused trial, both places are None.
        """
        paused = [place for place, trial in enumerate(trials) if trial.status is Status.PAUSED]
        observed = [place for place, trial in enumerate(trials) if trial.curve]
        if len(candidates) and (len(trials) < FIRST_TRIALS or not observed):
            return Choice(candidate=0)
        if not paused and not len(candidates):
            return Choice()
        if not observed:
            return Choice(trial=paused[0])
        model = self._model(trials)
        places = np.array([*paused, *(-1 for _ in candidates)])
        features = np.concatenate([_features(trials, paused, candidates.shape[1]), candidates])
        means, deviations = model.predict(features, places, self.last_epoch)
        left = np.array([*(self.last_epoch - max(trials[p].curve, default=0) for p in paused)])
        epochs = np.concatenate([np.maximum(left, 1), np.full(len(candidates), self.last_epoch)])
        gains = expected_improvement(means, deviations, best_target(trials, self.last_epoch)) / epochs
        best = int(gains.argmax())
        return Choice(trial=paused[best]) if best < len(paused) else Choice(candidate=best - len(paused))

    def predict(self, trials: Sequence[KnownTrial], place: int) -> Prediction:
        """Return the accuracy that a trial is expected to have after the last epoch."""
        mean, deviation = self._predict_end(trials, place)
        ends = mean + deviation * ndtri([0.5, 0.05, 0.95])
        return Prediction(*(float(value) for value in to_accuracy(ends)))

    def probability_to_beat(self, trials: Sequence[KnownTrial], place: int) -> float:
        """Return the probability that a trial ends above the best completed one."""
        mean, deviation = self._predict_end(trials, place)
        return float(ndtr((mean - best_target(trials, self.last_epoch)) / deviation))

    def _predict_end(self, trials: Sequence[KnownTrial], place: int) -> tuple[float, float]:
        """Return mean and deviation of -log(1 - accuracy) of a trial after the last epoch."""
        features, places = trials[place].features[None], np.array([place])
        means, deviations = self._model(trials).predict(features, places, self.last_epoch)
        return float(means[0]), float(deviations[0])

    def _model(self, trials: Sequence[KnownTrial]) -> CurveModel:
        """Return the model of these trials, the last one if they are the same."""
        if self._last is None or not _are_same(self._last[0], trials):
            self._last = list(trials), self._make_model(trials)
        return self._last[1]

    def _make_model(self, trials: Sequence[KnownTrial]) -> CurveModel:
        curves = select_observations(trials)
        if self.parameters is None or len(curves) >= GROWTH * self.fitted_observations:
            model = CurveModel.fit(curves)
            self.parameters, self.fitted_observations = model.parameters, len(curves)
        else:
            model = CurveModel(curves, self.parameters)
        running = np.array([p for p, trial in enumerate(trials) if trial.status is Status.RUNNING], dtype=np.int64)
        if not len(running):
            return model
        # A running trial counts with the next epoch that it is expected to report.
        epochs = np.array([min(max(trials[p].curve, default=0) + 1, self.last_epoch) for p in running], np.float64)
        means, _ = model.predict(_features(trials, running, curves.features.shape[1]), running, epochs)
        return CurveModel(curves.with_observations(running, epochs, to_accuracy(means)), self.parameters)


def _are_same(before: Sequence[KnownTrial], now: Sequence[KnownTrial]) -> bool:
    return len(before) == len(now) and all(
        old.features is new.features and old.status is new.status and old.curve == new.curve
        for old, new in zip(before, now, strict=True)
    )


def select_observations(trials: Sequence[KnownTrial]) -> Curves:
    """Return the observations of the model: all, as long as they are not too many."""
    curves = [dict(trial.curve) for trial in trials]
    if sum(map(len, curves)) > MAX_OBSERVATIONS:
        order = sorted((p for p, curve in enumerate(curves) if curve), key=lambda p: -curves[p][max(curves[p])])
        room = MAX_OBSERVATIONS
        for rank, place in enumerate(order):
            curve = curves[place]
            count = min(len(curve) if rank < MAX_WHOLE_CURVES else 1, room)
            curves[place] = {epoch: curve[epoch] for epoch in sorted(curve)[len(curve) - count :]}
            room -= count
    return Curves.create(np.stack([trial.features for trial in trials]), curves)


def best_target(trials: Sequence[KnownTrial], last_epoch: int) -> float:
    """Return -log(1 - accuracy) of the best completed trial; of `CHANCE` if none has completed."""
    return float(to_target(max((t.curve[last_epoch] for t in trials if last_epoch in t.curve), default=CHANCE)))


def expected_improvement(means: Array, deviations: Array, best: float) -> Array:
    """Return the expected excess of normal variables over a value (Mockus 1975)."""
    scores = (means - best) / deviations
    return np.asarray(deviations * (scores * ndtr(scores) + np.exp(-0.5 * scores**2) / np.sqrt(2 * np.pi)))


def _features(trials: Sequence[KnownTrial], places: Sequence[int] | Integers, dimensions: int) -> Array:
    return np.array([trials[int(place)].features for place in places]).reshape(-1, dimensions)
