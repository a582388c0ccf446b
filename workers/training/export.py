"""Makes a published checkpoint folder of a training run.

Exists because a run's parameters are float32 with experts stacked, while the shipped folder
follows the published Nemotron 3 layout: bfloat16, `backbone.*` names, one tensor per expert,
the router's correction bias in float32.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from workers.checkpoint.schema import EXPERTS_DOWN, EXPERTS_UP, published_name
from workers.training.parameters import CORRECTION_BIAS, Parameters
from workers.training.run_state import RunState
from workers.training.shape import PUBLISHED_CONFIG
from workers.training.tokenizer import BOS, EOS, PAD, TURN_END

DEFAULT_OUTPUT = Path("workers/checkpoints/tandem-tiny")


def published_tensors(parameters: Parameters) -> dict[str, Tensor]:
    """Canonical parameters under their published names, in the published dtypes."""
    published = {}
    for name, tensor in parameters.items():
        kept = torch.float32 if name.endswith(CORRECTION_BIAS) else torch.bfloat16
        stored = tensor.detach().to(kept)
        full = published_name(name)
        if name.endswith((EXPERTS_UP, EXPERTS_DOWN)):
            stem, matrix = full.rsplit(".", 1)
            for index, expert in enumerate(stored):
                published[f"{stem}.{index}.{matrix}.weight"] = expert.contiguous()
        else:
            published[full] = stored.contiguous()
    return published


def export(run: Path, output: Path) -> None:
    """Write config, weights, tokenizer and generation settings of `run` into `output`."""
    output.mkdir(parents=True, exist_ok=True)
    tensors = published_tensors(RunState.load(run).parameters)
    partial = output / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors makes files that only their owner can read
    partial.replace(output / "model.safetensors")
    generation = {
        "bos_token_id": BOS,
        "eos_token_id": [EOS, TURN_END],
        "pad_token_id": PAD,
        "do_sample": False,
    }
    for name, content in (("config", PUBLISHED_CONFIG), ("generation_config", generation)):
        text = json.dumps(content, indent=2)
        (output / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(run / name, output / name)


def main() -> None:
    """Export a training run."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="checkpoint folder")
    given = parser.parse_args()
    export(given.run, given.output)


if __name__ == "__main__":
    main()
