"""Measures a shipped checkpoint and writes the numbers into its README.

Exists so that the numbers in the README come from the files next to it: it reads the exported
checkpoint with the serving code, not the training state.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from workers.checkpoint import load_model
from workers.checkpoint.terminal import progress_bar
from workers.model import HybridModel
from workers.training.corpus import DEFAULT_CACHE, Document, load_documents
from workers.training.dataset import TokenStream
from workers.training.drafting import Acceptance, speculate
from workers.training.export import DEFAULT_OUTPUT
from workers.training.forward import backbone, draft_chain
from workers.training.model_card import Facts, model_card
from workers.training.tokenizer import EOS, TURN_END

DRAFT_TOKENS = 3
ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class ValidationLoss:
    """Mean next-token loss on held-out text."""

    nats_per_token: float
    bits_per_byte: float
    tokens: int


@torch.no_grad()
def validation_loss(model: HybridModel, stream: TokenStream, length: int) -> ValidationLoss:
    """Score all held-out text in windows of `length` tokens; the first of each is not scored."""
    windows = len(stream.tokens) // length
    tokens = torch.from_numpy(stream.tokens[: windows * length].astype("int64"))
    total = 0.0
    for batch in torch.split(tokens.view(windows, length), 8):
        hidden = backbone(batch, model.weights, model.config, lambda *_: None)
        logits = model.logits(hidden[:, :-1]).flatten(0, 1)
        total += float(functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum"))
    scored = windows * (length - 1)
    bytes_per_token = stream.text_bytes / len(stream.tokens)
    nats = total / scored
    return ValidationLoss(nats, nats / math.log(2) / bytes_per_token, scored)


def chat_prompt(document: Document, tokenizer: Tokenizer) -> list[int]:
    """The document's question as the chat template writes it."""
    text = f"<s><|im_start|>user\n{document.question}<|im_end|>\n<|im_start|>assistant\n"
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def acceptance(
    model: HybridModel, documents: list[Document], tokenizer: Tokenizer, prompts: int
) -> Acceptance:
    """Acceptance over held-out prompts: the question and the first words of the answer."""
    total = Acceptance((0,) * DRAFT_TOKENS, (0,) * DRAFT_TOKENS)
    for index, document in enumerate(documents[:prompts]):
        opening = tokenizer.encode(document.text, add_special_tokens=False).ids[:48]
        prompt = [*chat_prompt(document, tokenizer), *opening]
        total += speculate(model, prompt, ANSWER_TOKENS, DRAFT_TOKENS)[1]
        if sys.stderr.isatty():
            sys.stderr.write(f"\racceptance: prompt {index + 1} of {prompts}")
    return total


@torch.no_grad()
def agreement(model: HybridModel, stream: TokenStream, length: int) -> tuple[float, ...]:
    """How often each draft equals the model's own greedy choice, reading held-out text.

    Greedy answers of a small model fall into loops, which are easy to draft; text that people
    wrote does not. Draft j reads the text's tokens, not its own earlier drafts.
    """
    mtp = model.weights.mtp
    if mtp is None:
        raise ValueError("this checkpoint has no MTP block to measure")
    tokens = torch.from_numpy(stream.tokens[: 16 * length].astype("int64")).view(16, length)
    hidden = backbone(tokens, model.weights, model.config, lambda *_: None)
    own = model.logits(hidden).argmax(-1)
    chain = draft_chain(
        tokens, hidden, model.weights, mtp, model.config, DRAFT_TOKENS, lambda *_: None
    )
    rates = []
    for depth, state in enumerate(chain, start=1):
        chosen = own[:, depth : depth + state.shape[1]]
        rates.append(float((model.logits(state).argmax(-1) == chosen).float().mean()))
    return tuple(rates)


def sample(model: HybridModel, tokenizer: Tokenizer, question: str) -> str:
    """A short answer, sampled at temperature 0.7 with a fixed seed."""
    rng = torch.Generator().manual_seed(0)

    def pick(logits: torch.Tensor) -> int:
        return int(torch.multinomial(torch.softmax(logits / 0.7, -1), 1, generator=rng))

    prompt = chat_prompt(Document("kjv", question, "", ""), tokenizer)
    tokens, _ = speculate(model, prompt, 64, 0, pick)
    stops = [tokens.index(stop) for stop in (EOS, TURN_END) if stop in tokens]
    return str(tokenizer.decode(tokens[: min(stops, default=len(tokens))]))


def main() -> None:
    """Measure a checkpoint; print the numbers as JSON; write its README."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_OUTPUT, help="checkpoint folder")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of the corpus")
    parser.add_argument("--run", type=Path, help="training run, for its length in the README")
    parser.add_argument("--prompts", type=int, default=60, help="prompts for the acceptance")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with progress_bar() as progress:
        model = load_model(given.model, torch.float32, progress=progress)
    tokenizer = Tokenizer.from_file(str(given.model / "tokenizer.json"))
    held_out = [document for document in load_documents(given.cache) if document.held_out]
    # By title, which mixes the sources: a few prompts cover both.
    held_out.sort(key=lambda document: (document.title, document.source))
    stream = TokenStream.build(held_out, tokenizer, seed=0)
    loss = validation_loss(model, stream, length=512)
    accepted = acceptance(model, held_out, tokenizer, given.prompts)
    log = (given.run / "log.jsonl").read_text().splitlines() if given.run else []
    last = json.loads(log[-1]) if log else {}
    questions = ("Read me Genesis 1", "Tell me about functions", "Who was David?")
    facts = Facts(
        nats_per_token=loss.nats_per_token,
        bits_per_byte=loss.bits_per_byte,
        validation_tokens=loss.tokens,
        acceptance_length=accepted.length,
        acceptance_rates=accepted.rates,
        agreement_rates=agreement(model, stream, length=512),
        acceptance_prompts=min(given.prompts, len(held_out)),
        drafts=accepted.tried[0],
        training_steps=last.get("step"),
        training_tokens=last.get("tokens"),
        training_seconds=last.get("seconds"),
        samples=tuple((question, sample(model, tokenizer, question)) for question in questions),
    )
    (given.model / "README.md").write_text(model_card(given.model, facts), encoding="utf-8")
    sys.stdout.write(json.dumps(facts.as_json(), indent=2) + "\n")


if __name__ == "__main__":
    main()
