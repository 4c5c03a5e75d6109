"""The files of a study for people and programs that have neither of its stores. Reads Optuna's storage alone."""

from __future__ import annotations

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.errors import UserError
from fmnist_search.reporting.study_note import study_note
from fmnist_search.reporting.tables import leaderboard_csv
from fmnist_search.results.study import Importances, StudySummary
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import displayed_names
from fmnist_search.workflows.lookup import load_study, summarize_stored
from fmnist_search.workspace import Workspace


def study_files(study: str, *, plots: bool = True, workspace: Workspace | None = None) -> dict[str, bytes]:
    """Return the files of a study by name.

    `study.toml`, `trials.csv` and a note in Markdown are always there; `best.toml` is the recipe of the best trial, and
    `champion.toml` the one that was confirmed and registered. With `plots`, each chart is a PNG file.

    Raises:
        UserError: if there is no such study.
    """
    workspace = workspace or Workspace.resolve()
    study_store = load_study(workspace, study)
    config, summary = study_store.config, summarize_stored(workspace, study_store)
    names = displayed_names(config, (trial.recipe for trial in summary.trials))
    texts = {
        "study.toml": config.to_toml(),
        "trials.csv": leaderboard_csv(summary.trials, names),
        "note.md": _note(study_store, summary, names),
    }
    if summary.best:
        texts["best.toml"] = recipe_to_toml(summary.best.recipe)
    if summary.champion:
        texts["champion.toml"] = recipe_to_toml(summary.champion.recipe)
    files = {name: text.encode() for name, text in texts.items()}
    return files | (_plots(study_store, summary) if plots else {})


def _note(study_store: StudyStore, summary: StudySummary, names: list[str]) -> str:
    config = study_store.config
    space = {"space.common.family": ", ".join(config.space.families), **dict(config.domains())}
    return study_note(summary, names, space, budget=config.budget, importances=_importances(study_store))


def _plots(study_store: StudyStore, summary: StudySummary) -> dict[str, bytes]:
    from fmnist_search.reporting.study_plots import study_figures
    from fmnist_search.reporting.style import figure_to_png

    figures = study_figures(summary.trials, study_store.config.space, _importances(study_store))
    return {f"{name}.png": figure_to_png(draw()) for name, draw in figures.items()}


def _importances(study_store: StudyStore) -> Importances | None:
    """Return the importances of the hyperparameters; None if too few trials have completed to rely on them."""
    try:
        found = study_store.importances()
    except UserError:
        return None
    return found if found.are_reliable else None
