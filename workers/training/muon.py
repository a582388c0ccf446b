"""Muon: momentum whose matrix updates are orthogonalised before they are applied.

Exists because the shipped model sees few tokens: per token, orthogonalised updates learn about
twice as fast as AdamW's on hidden matrices (Jordan et al. 2024, https://kellerjordan.github.io/
posts/muon/). torch.optim.Muon takes plain matrices only; here a stack of experts
[E, rows, columns] is a batch of matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Quintic Newton-Schulz coefficients of the reference implementation.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


def orthogonalise(update: Tensor) -> Tensor:
    """Nearest (semi-)orthogonal matrix, roughly: singular values end between 0.7 and 1.2."""
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Args:
        matrices: leaf tensors [..., rows, columns].
        lr: step size; an update has the root mean square of AdamW's (0.2) times this.
        momentum: of the gradient.
        weight_decay: per step, times lr.
    """

    def __init__(
        self, matrices: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(matrices, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Apply one update."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                average = state["momentum"]
                average.lerp_(matrix.grad, 1 - momentum)
                update = orthogonalise(matrix.grad.lerp(average, momentum))
                scale = 0.2 * max(matrix.shape[-2:]) ** 0.5
                matrix.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * scale)
