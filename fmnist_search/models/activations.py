"""The activation functions that families choose from. They are named here, so that this module needs no torch."""

from __future__ import annotations

ACTIVATIONS = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "prelu": "PReLU",
    "elu": "ELU",
    "gelu": "GELU",
    "silu": "SiLU",
}
"""Name of the class in `torch.nn` by the name that recipes use."""

MONOTONIC_ACTIVATIONS = ("relu", "leaky_relu", "elu")
"""Activations that never decrease. A PReLU can learn a negative slope."""
