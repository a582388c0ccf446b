"""Saving and resuming a training run.

Exists so that a run that is stopped loses minutes, not hours, and so that a half-written file
never replaces a good one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from workers.training.parameters import Parameters


@dataclass(slots=True)
class RunState:
    """Everything that changes during a run.

    Attributes:
        step: optimiser steps done.
        seconds: wall-clock seconds spent training.
        parameters: float32 tensors by canonical name.
        optimiser: state_dict of AdamW, empty before the first step.
    """

    step: int
    seconds: float
    parameters: Parameters
    optimiser: dict[str, object]

    def save(self, folder: Path) -> None:
        """Write `folder`/run.pt, replacing the previous one in one move."""
        folder.mkdir(parents=True, exist_ok=True)
        parameters = {name: tensor.detach() for name, tensor in self.parameters.items()}
        temporary = folder / "run.pt.partial"
        torch.save(
            {
                "step": self.step,
                "seconds": self.seconds,
                "parameters": parameters,
                "optimiser": self.optimiser,
            },
            temporary,
        )
        temporary.replace(folder / "run.pt")

    @classmethod
    def load(cls, folder: Path) -> RunState:
        """Read `folder`/run.pt."""
        saved = torch.load(folder / "run.pt", weights_only=True)
        parameters = {
            name: tensor.requires_grad_("correction_bias" not in name)
            for name, tensor in saved["parameters"].items()
        }
        return cls(saved["step"], saved["seconds"], parameters, saved["optimiser"])
