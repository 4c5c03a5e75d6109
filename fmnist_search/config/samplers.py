"""The samplers that a study file can name, each with its settings; `search.samplers` creates them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from fmnist_search.config.domain import Choice, Domain
from fmnist_search.config.sections import MAX_TRIALS, Section, expand_name


class SamplerSection(Section):
    """The settings of a sampler."""

    def joint_groups(self, groups: Sequence[Mapping[str, Domain]]) -> list[Mapping[str, Domain]]:
        """Return the groups of hyperparameters that it samples jointly; all others it samples independently.

        `groups` are those of a space, as in `conditional_space.hyperparameter_groups`; the first is unconditional.
        """
        return []

    def continued(self, stored: SamplerSection) -> SamplerSection:
        """Return the settings with which a study goes on, where `stored` are those that it had so far."""
        return self


class Tpe(SamplerSection):
    """Tree-structured Parzen estimator, multivariate and grouped: learns from the trials so far."""

    name: Literal["tpe"] = "tpe"
    startup_trials: int = Field(5, ge=1, le=MAX_TRIALS, description="trials sampled at random before it learns")
    candidates: int = Field(
        24, ge=1, le=10_000, description="candidates that it draws for each trial, of which it takes the most promising"
    )
    window: int = Field(
        300,
        ge=0,
        le=MAX_TRIALS,
        description="trials that it learns from, at least `startup_trials`: the best and the newest, and up to 64 that "
        "are running; 0 takes all, and then each trial of a study takes longer to choose than the one before",
    )

    def joint_groups(self, groups: Sequence[Mapping[str, Domain]]) -> list[Mapping[str, Domain]]:
        """Return every group."""
        return list(groups)

    def continued(self, stored: SamplerSection) -> SamplerSection:
        """Return the settings with the window that the study had so far, unless these give one."""
        if not isinstance(stored, Tpe) or "window" in self.model_fields_set:
            return self
        return self.model_copy(update={"window": stored.window})


class Random(SamplerSection):
    """Every trial sampled independently."""

    name: Literal["random"] = "random"


class Gp(SamplerSection):
    """Gaussian process, learning from completed trials; conditional hyperparameters are sampled at random."""

    name: Literal["gp"] = "gp"
    startup_trials: int = Field(
        10, ge=1, le=MAX_TRIALS, description="completed trials sampled at random before it learns"
    )

    def joint_groups(self, groups: Sequence[Mapping[str, Domain]]) -> list[Mapping[str, Domain]]:
        """Return the unconditional group."""
        return [groups[0]]


class Cmaes(SamplerSection):
    """CMA-ES over unconditional ranges, learning from completed trials; all else is sampled at random."""

    name: Literal["cmaes"] = "cmaes"
    startup_trials: int = Field(
        1, ge=0, le=MAX_TRIALS, description="completed trials sampled at random before it begins"
    )
    population: int | None = Field(
        None, ge=2, le=10_000, description="recipes per generation; by default it follows from the number of ranges"
    )

    def joint_groups(self, groups: Sequence[Mapping[str, Domain]]) -> list[Mapping[str, Domain]]:
        """Return the ranges of the unconditional group."""
        return [{name: domain for name, domain in groups[0].items() if not isinstance(domain, Choice)}]


class Qmc(SamplerSection):
    """Quasi-random: a scrambled low-discrepancy sequence over the whole space, which learns nothing."""

    name: Literal["qmc"] = "qmc"
    sequence: Literal["sobol", "halton"] = "sobol"

    def joint_groups(self, groups: Sequence[Mapping[str, Domain]]) -> list[Mapping[str, Domain]]:
        """Return one group of all hyperparameters."""
        return [{name: domain for group in groups for name, domain in group.items()}]


class FreezeThaw(SamplerSection):
    """Freeze-thaw: pauses and resumes trials; each epoch goes to the trial or the new recipe that promises most.

    It predicts learning curves with a Gaussian process, and needs no pruner.
    """

    name: Literal["freeze-thaw"] = "freeze-thaw"
    candidates: int = Field(
        24, ge=1, le=1_000, description="new random recipes with which it compares the trials that have begun"
    )


class Grid(SamplerSection):
    """Every recipe of a space of lists and steps, once, in random order."""

    name: Literal["grid"] = "grid"


FALLBACK_SAMPLER = Tpe()
"""The sampler of a study that names only a pruner or cannot have freeze-thaw, and of a `[sampler]` without a name."""

Sampler = Annotated[
    Tpe | Random | Gp | Cmaes | Qmc | Grid | FreezeThaw, Field(discriminator="name"), expand_name(FALLBACK_SAMPLER.name)
]
