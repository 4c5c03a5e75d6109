"""Colors of charts, distinguishable with a color vision deficiency (Okabe and Ito, Color Universal Design, 2008)."""

from __future__ import annotations

from fmnist_search.results.training import TrialState

BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#D55E00"
TEXT_COLOR, GREY, LIGHT_GREY = "#333333", "#767676", "#BBBBBB"
STATE_COLORS = {
    TrialState.COMPLETED: BLUE,
    TrialState.PRUNED: ORANGE,
    TrialState.FAILED: RED,
    TrialState.INTERRUPTED: LIGHT_GREY,
    TrialState.PAUSED: LIGHT_GREY,
}
