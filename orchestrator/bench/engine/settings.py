"""What `tandem bench engine` was asked to measure, checked before anything is started."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.errors import UsageError

Peer = Literal["transformers", "vllm"]
PEERS: tuple[Peer, ...] = ("transformers", "vllm")
MEASUREMENTS = {
    "shipped": "prefill and decode of --model by batch and draft tokens",
    "pair": "the same for --model with MLPs in place of experts, which vLLM on CPU can run",
    "hybrid": "the same for a random hybrid of 100 M parameters",
    "prefill": "a prompt of 512 tokens",
    "mixed": "64 requests with answers of 16 to 256 tokens",
    "prefix": "a prompt of 2,000 tokens, 1,800 of them cached",
    "roofline": "decode steps of the 100 M hybrid against what the machine can read and multiply",
    "overhead": "time of a step outside torch operations, 100 M hybrid",
}
NO_EXPERTS_IN_VLLM = "vLLM on CPU cannot run non-gated experts"
_MOST_DRAFT_TOKENS = 7
_MOST_BATCH = 1024
_QUICK_OSL = 12


@dataclass(frozen=True, slots=True)
class Settings:
    """`osl` tokens are made for each prompt of `isl` tokens; `rounds` is how often each contender
    has its turn. `quick` shows that everything runs and measures too little to judge by."""

    model: Path
    against: tuple[str, ...]
    batches: tuple[int, ...]
    isl: int
    osl: int
    draft_tokens: tuple[int, ...]
    only: frozenset[str]
    rounds: int
    quick: bool
    vllm_python: Path | None

    def wants(self, measurement: str) -> bool:
        return measurement in self.only


def checked_settings(
    *,
    model: Path,
    against: str,
    batch: str,
    isl: int,
    osl: int,
    draft_tokens: str,
    only: str,
    rounds: int,
    quick: bool,
    vllm_python: Path | None,
) -> Settings:
    """Settings from the flags of the command line.

    Raises:
        UsageError: a list has a member that there is not, or a number is out of range.
    """
    if not (model / "config.json").is_file():
        raise UsageError(
            f"--model {model}: no config.json there", "give the folder of a checkpoint"
        )
    return Settings(
        model=model,
        against=_words("--against", against, PEERS),
        batches=_numbers("--batch", batch, 1, _MOST_BATCH),
        isl=isl,
        osl=min(osl, _QUICK_OSL) if quick else osl,
        draft_tokens=_numbers("--draft-tokens", draft_tokens, 0, _MOST_DRAFT_TOKENS),
        only=frozenset(_words("--only", only, tuple(MEASUREMENTS)) or MEASUREMENTS),
        rounds=1 if quick else rounds,
        quick=quick,
        vllm_python=vllm_python,
    )


def _members(text: str) -> list[str]:
    return [member.strip() for member in text.split(",") if member.strip()]


def _words(flag: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    members = _members(text)
    for member in members:
        if member not in known:
            near = difflib.get_close_matches(member, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(known)}"
            raise UsageError(f"{flag}: unknown name '{member}'", hint)
    return tuple(dict.fromkeys(members))


def _numbers(flag: str, text: str, least: int, most: int) -> tuple[int, ...]:
    members = _members(text)
    if not members:
        raise UsageError(f"{flag}: give at least one number")
    numbers = []
    for member in members:
        if not member.isascii() or not member.isdigit() or not least <= int(member) <= most:
            raise UsageError(f"{flag}: '{member}' is no whole number from {least} to {most}")
        numbers.append(int(member))
    return tuple(dict.fromkeys(numbers))
