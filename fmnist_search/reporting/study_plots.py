"""The plots of a study by name, drawn with matplotlib from plain results.

Each plot states which trials it includes. Imports neither MLflow nor Optuna.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fmnist_search.config.space import Space
from fmnist_search.reporting import progress_plots, space_plots
from fmnist_search.reporting.chart_data import StudyView
from fmnist_search.results.study import Importances, TrialRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = progress_plots.PLOTS | space_plots.PLOTS
"""The function that draws each chart, by the chart's name in `StudyView.charts`."""


def study_figures(
    trials: Sequence[TrialRecord], space: Space, importances: Importances | None = None
) -> dict[str, Callable[[], Figure]]:
    """Return the plots of a study by name; each is drawn when it is called, and plots without data are left out.

    `trials` are all finished trials. The contour plot and the order of the hyperparameters need importances.
    """
    view = StudyView(trials, space, importances)
    return {name: functools.partial(PLOTS[name], view, chart) for name, chart in view.charts.items()}
