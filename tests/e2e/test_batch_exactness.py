"""`tandem batch` gives the tokens of transformers, on one engine and over a NIXL hand-off."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.clusters import TANDEM
from tests.e2e.conftest import TINY
from tests.reference_models import Shape, load_reference, reference_greedy, write_reference

pytestmark = pytest.mark.e2e

_MAX_TOKENS = 16
_TIMEOUT_S = 300
# Short ones, both sides of block (16), scan and prefill-chunk (512) boundaries, and long ones.
_LENGTHS = (1, 2, 3, 15, 16, 17, 31, 63, 64, 65, 127, 129, 200, 511, 512, 513, 1100, 3000)
_TEXTS = (
    "In the beginning",
    "What is a tuple?",
    "def main(argv):",
    "Ünïcödé — naïve 日本語 🙂",
    "  leading and trailing spaces  ",
    "1 2 3 4 5 6 7 8 9",
)

_RANDOM = {
    "latent_experts_in_groups": Shape(
        pattern="MEM*E",
        n_routed_experts=16,
        n_group=4,
        topk_group=2,
        num_experts_per_tok=4,
        n_groups=4,
        num_key_value_heads=4,
    ),
    "experts_in_full_width": Shape(pattern="*EM-ME", moe_latent_size=None, chunk_size=7),
    "narrow_convolution": Shape(pattern="M-M*E", ssm_state_size=8, conv_kernel=3),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint, input lines for it, and the tokens that transformers writes."""

    folder: Path
    lines: list[dict[str, object]]
    expected: dict[str, list[int]]


def _random_prompts(vocab_size: int, lengths: tuple[int, ...], seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def _case(folder: Path, prompts: list[list[int]], texts: dict[str, list[int]]) -> Case:
    """Token prompts as they are, text prompts with the ids that the tokenizer gives them."""
    reference = load_reference(folder)
    common: dict[str, object] = {"max_tokens": _MAX_TOKENS, "temperature": 0, "ignore_eos": True}
    lines: list[dict[str, object]] = []
    expected: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        lines.append({**common, "id": f"tokens-{number}", "token_ids": prompt})
        expected[f"tokens-{number}"] = reference_greedy(reference, prompt, _MAX_TOKENS)
    for number, (text, token_ids) in enumerate(texts.items()):
        lines.append({**common, "id": f"text-{number}", "text": text})
        expected[f"text-{number}"] = reference_greedy(reference, token_ids, _MAX_TOKENS)
    return Case(folder, lines, expected)


@pytest.fixture(scope="module")
def shipped() -> Case:
    """50 varied prompts for the model that ships with the repository."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    texts = {text: tokenizer.encode(text).ids for text in _TEXTS}
    short = tuple(random.Random(1).randrange(1, 120) for _ in range(50 - len(texts) - 18))
    return _case(TINY, _random_prompts(2048, _LENGTHS + short, seed=2), texts)


@pytest.fixture(scope="module", params=_RANDOM)
def seeded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Varied prompts for a random model of another shape."""
    folder = tmp_path_factory.mktemp("random") / str(request.param)
    shape = _RANDOM[request.param]
    write_reference(folder, shape, seed=len(request.param))
    return _case(folder, _random_prompts(shape.vocab_size, _LENGTHS, seed=3), {})


def _batch(case: Case, folder: Path, *flags: str) -> dict[str, dict[str, object]]:
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in case.lines))
    command: list[str | Path] = [
        TANDEM,
        "batch",
        "--model",
        case.folder,
        "--input",
        source,
        "--output",
        target,
    ]
    done = subprocess.run(
        [*command, "--dtype", "float32", *flags],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [line["id"] for line in case.lines]
    return {answer["id"]: answer for answer in answers}


@pytest.mark.parametrize(
    "flags",
    [
        ("--draft-tokens", "3"),
        ("--kvp", "2", "--ep", "2", "--draft-tokens", "3"),
        ("--prefill-tp", "2", "--kvp", "2", "--tpa", "2", "--tpf", "2", "--ep", "2"),
        ("--colocated",),
        ("--colocated", "--draft-tokens", "0"),
        ("--colocated", "--kvp", "2", "--ep", "2", "--draft-tokens", "3"),
    ],
    ids=[
        "disaggregated with 3 drafts",
        "to a Helix group of 2",
        "from a group of 2 to one of 4",
        "colocated",
        "colocated without drafts",
        "Helix group of 2 alone",
    ],
)
def test_fifty_prompts_of_the_shipped_model_equal_transformers(
    shipped: Case, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    assert len(shipped.lines) == 50
    answers = _batch(shipped, tmp_path, *flags)
    assert {name: answer["token_ids"] for name, answer in answers.items()} == shipped.expected
    assert all(answer["finish_reason"] == "length" for answer in answers.values())


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--prefill-tp", "2"),
        ("--colocated",),
        ("--colocated", "--tpa", "2", "--tpf", "2"),
    ],
    ids=["disaggregated", "from two ranks", "colocated", "two ranks"],
)
def test_random_models_of_other_shapes_equal_transformers(
    seeded: Case, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    answers = _batch(seeded, tmp_path, *flags)
    assert {name: answer["token_ids"] for name, answer in answers.items()} == seeded.expected


@pytest.mark.parametrize(
    "flags",
    [
        ("--kvp", "2"),
        ("--draft-tokens", "9"),
        ("--tpa", "4", "--tpf", "4"),
    ],
)
def test_layouts_that_cannot_be_are_refused_by_name(tmp_path: Path, flags: tuple[str, ...]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "a", "token_ids": [5], "max_tokens": 1}\n')
    done = subprocess.run(
        [TANDEM, "batch", "--model", TINY, "--input", source, "--output", tmp_path / "o", *flags],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == (1 if "--tpf" in flags else 2)  # the model's rules are the worker's
    assert flags[0].strip("-").replace("-", "_") in done.stderr
    assert "Traceback" not in done.stderr
