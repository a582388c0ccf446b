"""The README of the shipped checkpoint, made from measured numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open


@dataclass(frozen=True, slots=True)
class Facts:
    """What `evaluate` measured; training numbers are None when no run was given."""

    nats_per_token: float
    bits_per_byte: float
    validation_tokens: int
    acceptance_length: float
    acceptance_rates: tuple[float, ...]
    agreement_rates: tuple[float, ...]
    acceptance_prompts: int
    drafts: int
    training_steps: int | None
    training_tokens: int | None
    training_seconds: float | None
    samples: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, object]:
        """The same as plain values."""
        return asdict(self)


_TEMPLATE = """# tandem-tiny

The reference model that ships with Tandem: a Nemotron-3-style hybrid small enough for a laptop
and a git repository, with every mechanism of its big relatives (Mamba-2, grouped-query attention
without positional embedding, LatentMoE with sigmoid routing and a shared expert, one
multi-token-prediction block). It exists to exercise the serving system. It writes recognisable
English in the manner of its training text and knows nothing.

| | |
|---|---|
| Parameters | {parameters:,} |
| Layers | `MEM*EMEM*E` (M Mamba-2, E LatentMoE, * attention), MTP block `*E` |
| Validation loss | {nats:.3f} nats/token, {bits:.3f} bits/byte ({validation_tokens:,} tokens) |
| Greedy acceptance length, 3 draft tokens | {length:.2f} ({drafts:,} drafts, {prompts} prompts) |
| Conditional acceptance, draft 1 / 2 / 3 | {rates} |
| Draft equals greedy choice on held-out text, draft 1 / 2 / 3 | {agreement} |
| Training | {training} |
| Context | 8,192 tokens accepted; trained on sequences of 256 |
| Files | bfloat16, published tensor names (`backbone.*`, `mtp.*`), {size:,} bytes |

The validation text is about 2 % of the documents, never trained on, in windows of 512 tokens.
The acceptance length is 1 + r1 + r1 r2 + r1 r2 r3, where r_i is how often draft i is what greedy
decoding gives when the drafts before it were right; prompts are held-out questions with the
first 48 tokens of their text, answers are 64 tokens long. Greedy answers of so small a model
soon repeat themselves, and repetition is easy to draft; "draft equals greedy choice", on text that
people wrote, is the sober number. All numbers are float32 on CPU.

Chat format: `<|im_start|>role`, newline, text, `<|im_end|>`, newline, after one `<s>`; the
template is in `tokenizer_config.json`. Answers end with `<|im_end|>` (4) or `</s>` (2).
`time_step_min` is 1e-6: transformers bounds the Mamba time step by it when it reads a prompt but
not in its one-token step, and this keeps the two equal.

## What it says

Sampled at temperature 0.7.

{samples}

## Make it again

```
python -m workers.training.train --run /tmp/tandem-run
python -m workers.training.export --run /tmp/tandem-run
python -m workers.training.evaluate --run /tmp/tandem-run
```

The text comes from two Debian 12 packages; `workers/training/SOURCES.md` names them and their
licences.
"""


def _parameters(folder: Path) -> int:
    """Numbers in the checkpoint, router biases included."""
    total = 0
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
            count = 1
            for size in opened.get_slice(name).get_shape():
                count *= size
            total += count
    return total


def _training(facts: Facts) -> str:
    if facts.training_steps is None or facts.training_seconds is None:
        return "see `workers/training/train.py`"
    return (
        f"{facts.training_steps:,} steps, {facts.training_tokens:,} tokens, "
        f"{facts.training_seconds / 60:.0f} minutes on one shared CPU core"
    )


def _quote(question: str, answer: str) -> str:
    lines = "\n".join(f"> {line}" for line in answer.strip().splitlines())
    return f"**{question}**\n\n{lines}"


def model_card(folder: Path, facts: Facts) -> str:
    """The text of README.md for the checkpoint in `folder`."""
    return _TEMPLATE.format(
        parameters=_parameters(folder),
        nats=facts.nats_per_token,
        bits=facts.bits_per_byte,
        validation_tokens=facts.validation_tokens,
        length=facts.acceptance_length,
        drafts=facts.drafts,
        prompts=facts.acceptance_prompts,
        rates=" / ".join(f"{rate:.0%}" for rate in facts.acceptance_rates),
        agreement=" / ".join(f"{rate:.0%}" for rate in facts.agreement_rates),
        training=_training(facts),
        size=(folder / "model.safetensors").stat().st_size,
        samples="\n\n".join(_quote(question, answer) for question, answer in facts.samples),
    )
