"""What Optuna defines for one objective only, for studies with one or two."""

from __future__ import annotations

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from fmnist_search.config.sections import MAX_MULT_ADDS
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError


def create_study(storage: BaseStorage, config: StudyConfig) -> optuna.Study:
    """Return the study of this name, created if it does not exist: the accuracy is maximized, a cost minimized."""
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(config.objective.metrics)]
    return optuna.create_study(storage=storage, study_name=config.name, directions=directions, load_if_exists=True)


def check_directions(study: optuna.Study, config: StudyConfig) -> None:
    """Check that a study has as many objectives as a config. One that was created without a config may have others.

    Raises:
        UserError: if it has not.
    """
    if (count := len(study.directions)) != len(config.objective.metrics):
        raise UserError(
            f"objective.metrics: names {len(config.objective.metrics)}, and the study {config.name!r} was created with "
            f"{count}; choose another name (--name), or start again with --fresh"
        )


def report_value(trial: optuna.Trial, value: float, epoch: int) -> None:
    """Report the value of an epoch. Optuna's method refuses to if a study has two objectives."""
    if len(trial.study.directions) == 1:
        trial.report(value, epoch)
    else:
        trial.storage.set_trial_intermediate_value(trial._trial_id, epoch, value)


def report_refusal(trial: optuna.Trial, mult_adds: int) -> None:
    """Let the sampler learn that a network was refused: of pruned trials it is the worst, the more so the larger it is.

    Optuna's TPE ranks pruned trials by their last step, then by its value, which is reported at step 0 here: a little
    below the accuracy 0. With two objectives it learns from completed trials alone.
    """
    if len(trial.study.directions) == 1:
        trial.report(-mult_adds / MAX_MULT_ADDS, 0)


def pruner_prunes(trial: optuna.Trial) -> bool:
    """Return whether the pruner of the study prunes a trial. With two objectives no pruner is defined."""
    return len(trial.study.directions) == 1 and bool(trial.should_prune())
