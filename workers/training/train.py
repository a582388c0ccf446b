"""Trains the shipped model on CPU.

Run `python -m workers.training.train --help`. The run folder holds the tokenizer, the state to
resume from (`run.pt`) and one JSON line of numbers per report (`log.jsonl`); make a checkpoint
folder of it with `python -m workers.training.export`. With glibc,
`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000` in the environment saves the time that
fresh pages for large activations take.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from workers.model.assembly import assemble
from workers.training.balance import ExpertBalance
from workers.training.corpus import DEFAULT_CACHE, load_documents
from workers.training.dataset import BatchPlan, TokenStream
from workers.training.objective import losses
from workers.training.parameters import initial_parameters, optimiser_groups
from workers.training.run_state import RunState
from workers.training.schedule import Schedule
from workers.training.shape import shipped_config
from workers.training.tokenizer import save_tokenizer, tokenizer_texts, train_tokenizer

VALIDATION_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line, typed."""

    run: Path
    cache: Path
    schedule: Schedule
    plan: BatchPlan
    weight_decay: float
    balance_rate: float
    save_every_s: float
    threads: int


def _settings() -> Settings:
    parser = argparse.ArgumentParser(
        description="Train the shipped model; run again with the same --run to resume."
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of this run")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of the corpus")
    parser.add_argument("--steps", type=int, default=2600, help="optimiser steps in all")
    parser.add_argument("--sequences", type=int, default=8, help="sequences per step")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--balance-rate", type=float, default=1e-3)
    parser.add_argument("--depth", type=int, default=3, help="draft recursions to train")
    parser.add_argument("--save-every-s", type=float, default=180.0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=2026)
    given = parser.parse_args()
    return Settings(
        run=given.run,
        cache=given.cache,
        schedule=Schedule(given.steps, given.rate, depth=given.depth),
        plan=BatchPlan(given.sequences, given.length, given.seed),
        weight_decay=given.weight_decay,
        balance_rate=given.balance_rate,
        save_every_s=given.save_every_s,
        threads=given.threads,
    )


def load_streams(run: Path, cache: Path, seed: int) -> tuple[TokenStream, TokenStream]:
    """Training and validation tokens; trains the run's tokenizer the first time."""
    documents = load_documents(cache)
    train = [document for document in documents if not document.held_out]
    held_out = [document for document in documents if document.held_out]
    if not (run / "tokenizer.json").exists():
        config = shipped_config()
        tokenizer = train_tokenizer(tokenizer_texts(documents), config.vocab_size)
        save_tokenizer(tokenizer, run, config.max_position_embeddings)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    return (
        TokenStream.build(train, tokenizer, seed=seed),
        TokenStream.build(held_out, tokenizer, seed=seed),
    )


class Trainer:
    """One run: its state, its data and the loop over steps."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._config = shipped_config()
        seed = settings.plan.seed
        self._train, self._held_out = load_streams(settings.run, settings.cache, seed)
        if (settings.run / "run.pt").exists():
            self._state = RunState.load(settings.run)
        else:
            self._state = RunState(0, 0.0, initial_parameters(self._config, seed), {})
        groups = optimiser_groups(self._state.parameters, settings.weight_decay)
        self._optimiser = torch.optim.AdamW(
            groups, lr=settings.schedule.peak, betas=(0.9, 0.95), eps=1e-8, fused=True
        )
        if self._state.optimiser:
            self._optimiser.load_state_dict(self._state.optimiser)
        self._balance = ExpertBalance(settings.balance_rate)

    def run(self) -> None:
        """Train until the schedule ends, reporting and saving on the way."""
        schedule, state = self._settings.schedule, self._state
        started, saved = time.monotonic() - state.seconds, time.monotonic()
        while state.step < schedule.steps:
            numbers = self._step()
            state.seconds = time.monotonic() - started
            done = state.step == schedule.steps
            if state.step % 20 == 0 or done:
                if state.step % 200 == 0 or done:
                    numbers["validation"] = self.validate()
                self._report(numbers)
            if done or time.monotonic() - saved > self._settings.save_every_s:
                state.optimiser = self._optimiser.state_dict()
                state.save(self._settings.run)
                saved = time.monotonic()

    def _step(self) -> dict[str, float]:
        schedule, state = self._settings.schedule, self._state
        scale = schedule.scale(state.step)
        for group in self._optimiser.param_groups:
            group["lr"] = schedule.peak * scale
        tokens = self._settings.plan.batch(self._train, state.step)
        weights = assemble(self._config, state.parameters)
        depth = schedule.draft_depth(state.step)
        loss = losses(tokens, weights, self._config, depth, self._balance.observe)
        self._optimiser.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        trained = [tensor for tensor in state.parameters.values() if tensor.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self._optimiser.step()
        state.step += 1
        return {
            "loss": float(loss.main.detach()),
            **{f"draft_{j}": float(value.detach()) for j, value in enumerate(loss.drafts, start=1)},
            "gradient_norm": float(norm),
            "busiest_expert": self._balance.adjust(scale),
            "rate": schedule.peak * scale,
        }

    @torch.no_grad()
    def validate(self) -> float:
        """Next-token loss on a fixed sample of held-out text, nats per token."""
        weights = assemble(self._config, self._state.parameters)
        total = 0.0
        for index in range(VALIDATION_BATCHES):
            tokens = self._settings.plan.batch(self._held_out, index)
            total += float(losses(tokens, weights, self._config, 0, lambda *_: None).main)
        return total / VALIDATION_BATCHES

    def _report(self, numbers: dict[str, float]) -> None:
        state, plan = self._state, self._settings.plan
        tokens = state.step * plan.sequences * plan.length
        line = {"step": state.step, "seconds": round(state.seconds, 1), "tokens": tokens}
        with (self._settings.run / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({**line, **numbers}) + "\n")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        text = f"step {state.step}/{self._settings.schedule.steps}  {state.seconds:.0f} s  {shown}"
        end = "\r" if sys.stderr.isatty() and "validation" not in numbers else "\n"
        sys.stderr.write(text + end)
        sys.stderr.flush()


def main() -> None:
    """Train the shipped model."""
    settings = _settings()
    settings.run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    # Inner products in bfloat16 where the processor has them: measured 1.6 times faster here.
    torch.set_float32_matmul_precision("medium")
    Trainer(settings).run()


if __name__ == "__main__":
    main()
