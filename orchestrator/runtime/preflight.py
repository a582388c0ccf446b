"""Finds out that a checkpoint folder cannot be one, before anything slow starts."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import UserError

_HINT = "name a folder in Hugging Face layout: --model DIR, or model.path in the spec"


def check_model(path: str) -> None:
    """Raise UserError when `path` is no folder with a config and weights; says what is missing."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist", _HINT)
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder} has no config.json", _HINT)
    if next(folder.glob("*.safetensors"), None) is None:
        raise UserError(f"model folder {folder} has no *.safetensors weights", _HINT)
