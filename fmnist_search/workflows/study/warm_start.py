"""The recipes that a study tries before its sampler is asked: the table `[start]` of a study file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fmnist_search.config.space import NOT_SEARCHABLE
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.config.toml_files import read_recipe
from fmnist_search.errors import UserError
from fmnist_search.models.presets import get_preset
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe, flatten_tables
from fmnist_search.registry import tags as version_tags
from fmnist_search.registry.versions import get_champion
from fmnist_search.results.study import rank_trials
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import base_recipe, sample_with_fixed, start_network, start_params
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.workflows.study.network_budget import check_start
from fmnist_search.workspace import Workspace


@dataclass(frozen=True)
class WarmStart:
    """A recipe, or some values of one, with the name under which the study records it."""

    source: str
    values: Mapping[str, Value]

    def example(self, config: StudyConfig) -> Recipe:
        """Return a recipe with these values, and with values of the study's space for what is not given."""
        return sample_with_fixed(config.space, base_recipe(config, "float32"), self.values, seed=0)


def load_warm_starts(
    workspace: Workspace, config: StudyConfig, mlflow_store: MlflowStore | None
) -> tuple[WarmStart, ...]:
    """Return the warm starts of a study. Without an MLflow store there is no champion.

    Raises:
        UserError: if a file, a study or a champion is missing, the study refuses values outside its space, or its
            budget the network.
    """
    starts = tuple(
        _load(number, entry, workspace, config, mlflow_store) for number, entry in enumerate(config.start.recipes, 1)
    )
    for start in starts:
        start_params(config, start.source, start.values)
        check_start(config, start.source, start_network(config, start.values))
    return starts


def _load(
    number: int, entry: str | dict[str, object], workspace: Workspace, config: StudyConfig, store: MlflowStore | None
) -> WarmStart:
    if not isinstance(entry, str):
        return _from_table(f"table {number}", entry)
    if entry == "champion":
        return WarmStart(entry, _champion_values(config, store))
    if entry.startswith("preset:"):
        return WarmStart(entry, get_preset(entry.removeprefix("preset:")).recipe.to_flat_dict())
    if entry.startswith("study:"):
        return _best_of_study(entry.removeprefix("study:"), workspace)
    return WarmStart(entry, read_recipe(entry).to_flat_dict())


def _from_table(source: str, table: dict[str, object]) -> WarmStart:
    values = flatten_tables(table)
    if fixed := [name for name in values if name in NOT_SEARCHABLE]:
        raise UserError(
            *(
                f"start.recipes: {source}: {name}: is the same in all trials of a study; leave it out, and set "
                f"{NOT_SEARCHABLE[name]}"
                for name in fixed
            )
        )
    return WarmStart(source, values)


def _best_of_study(name: str, workspace: Workspace) -> WarmStart:
    ranked = rank_trials(StudyStore.load(workspace.storage_url, name).trial_records())
    if not ranked:
        raise UserError(f"start.recipes: study {name!r} has no completed trial; search it first")
    return WarmStart(f"the best of {name}", ranked[0].recipe.to_flat_dict())


def _champion_values(config: StudyConfig, mlflow_store: MlflowStore | None) -> dict[str, Value]:
    """Return the values of the champion, or of the first member of an ensemble.

    Its schedule is left out, since the finalists' settings chose it and not a search.
    """
    if mlflow_store is None:
        raise UserError("start.recipes: the champion is in MLflow; leave it out, or leave out --no-tracking")
    name = config.finalists.model_name
    version = get_champion(mlflow_store.client, name)
    if version is None or not version.run_id:
        raise no_champion(name)
    run_id = version.tags.get(version_tags.MEMBER_RUNS, version.run_id).split(", ")[0]
    recipe = mlflow_store.load_recipe(run_id)
    return {key: value for key, value in recipe.to_flat_dict().items() if not key.startswith("schedule.")}


def no_champion(model: str) -> UserError:
    """Return the error for a model without a champion to start from."""
    return UserError(f"start.recipes: model {model!r} has no champion yet; leave it out, or promote one first")
