"""What a decision of freeze-thaw costs, by the number of trials of a study."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState

from fmnist_search.config.samplers import FreezeThaw, Tpe
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.search.candidates import RandomRecipes
from fmnist_search.search.freeze_thaw_sampler import FreezeThawSampler
from fmnist_search.search.samplers import joint_distributions
from fmnist_search.search.trial_attributes import PAUSED_ATTRIBUTE


def measure_decisions(known: Sequence[int], decisions: int = 9) -> Iterator[tuple[int, float]]:
    """Yield numbers of trials, and the median CPU milliseconds in which freeze-thaw then decides about an epoch.

    Of ten trials, one has completed and nine are paused after one to five epochs.
    """
    config = StudyConfig.load(Path(__file__).parent / "cpu.toml")
    study, epochs, random = optuna.create_study(direction="maximize"), config.budget.epochs, np.random.default_rng(0)
    recipes = RandomRecipes(config.space, 0)
    distributions = {name: each for group in joint_distributions(Tpe(), config.space) for name, each in group.items()}
    for count in sorted(known):
        for number in range(len(study.get_trials(deepcopy=False)), count):
            (params,) = recipes.draw(number, 1)
            reached = int(random.integers(1, 6)) if number % 10 else epochs
            end, rate = random.uniform(0.6, 0.92), random.uniform(0.3, 0.8)
            curve = {epoch: float(end * (1 - rate**epoch)) for epoch in range(1, reached + 1)}
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.PRUNED if number % 10 else TrialState.COMPLETE,
                    value=None if number % 10 else curve[epochs],
                    params=params,
                    distributions={name: distributions[name] for name in params},
                    intermediate_values=curve,
                    user_attrs={PAUSED_ATTRIBUTE: True} if number % 10 else {},
                )
            )
        sampler, times = FreezeThawSampler(FreezeThaw(), 0, config.space, epochs), []
        sampler.decide(study)  # fits the model, which is done once in many decisions
        for _ in range(decisions):
            (params,) = recipes.draw(len(study.get_trials(deepcopy=False)), 1)
            # As after an epoch: another observation, other candidates.
            last = {name: distributions[name] for name in params}
            study.add_trial(optuna.trial.create_trial(
                state=TrialState.PRUNED, params=params, distributions=last, intermediate_values={1: 0.5},
                user_attrs={PAUSED_ATTRIBUTE: True},
            ))  # fmt: skip
            before = time.process_time()
            sampler.decide(study)
            times.append(time.process_time() - before)
        yield count, 1000 * statistics.median(times)
