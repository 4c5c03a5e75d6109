"""The update rule Muon: the momentum of each hidden weight matrix is orthogonalized before it is applied.

The method is that of K. Jordan et al. (kellerjordan.github.io/posts/muon, 2024), with the step size of J. Liu et al.
(arXiv 2502.16982): an update is about as large as one of AdamW, so that both rules have their learning rates in the
same range. `torch.optim.Muon` is the same rule for matrices alone. It takes no convolutions; it computes in bfloat16,
which is slow on a CPU without such arithmetic; and it reads the learning rate on the host, which no CUDA graph can.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
"""Jordan's polynomial: after five steps the singular values of most matrices are between 0.7 and 1.2."""
UPDATE_SIZE = 0.2
"""Root mean square of an update at a learning rate of 1, about that of AdamW (Liu et al., section 2.2)."""


class Muon(torch.optim.AdamW):
    """Muon for the groups with `orthogonal = True`, AdamW for all others.

    A weight of more than two dimensions, as that of a convolution, is a matrix with a row for each output channel. The
    momentum of Muon is `betas[0]`, and Nesterov's with `nesterov = True`. Weight decay is decoupled in both.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients; those of orthogonal groups are None afterwards."""
        for group in self.param_groups:
            if group.get("orthogonal"):
                for weight in group["params"]:
                    self._update(weight, group)
                    weight.grad = None  # AdamW leaves out parameters without a gradient
        super().step()

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        if weight.grad is None:
            return
        state = self.state[weight]
        if not state:  # with the keys of AdamW, which loads and moves them
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
        momentum, average = group["betas"][0], state["exp_avg"]
        average.lerp_(weight.grad, 1 - momentum)
        direction = weight.grad.lerp(average, momentum) if group["nesterov"] else average
        update = orthogonalize(direction.flatten(1))
        size = group["lr"] * UPDATE_SIZE * math.sqrt(max(update.shape))
        weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(weight) * size)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about U V' for a matrix U S V' (its singular value decomposition), any shape, by Newton-Schulz iterations.

    An iteration multiplies the matrix X by a I + b G + c G^2 with G = X X'. All factors are polynomials of the first G,
    so that the small matrix alone is iterated, and X is multiplied once. A matrix of zeros stays one.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    wide = wide / (wide.norm() + torch.finfo(wide.dtype).tiny)
    gram = wide @ wide.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = identity
    for _ in range(NEWTON_SCHULZ_STEPS):
        factor = torch.addmm(b * gram + a * identity, gram, gram, alpha=c)
        product = factor @ product
        gram = factor @ gram @ factor
    result: Tensor = product @ wide
    return result.T if is_tall else result
