"""Choosing the tokens of a step, with draft tokens checked against them: lossless speculation.

At each position of a window the target's own token is chosen, with the random number that belongs
to its output index. A draft token is accepted if and only if it is that token, and the window ends
at the first one that is not. So the tokens that come out are those that would have come one by one,
whatever was drafted; and since drafts are single tokens, not distributions, one is accepted with
the probability that the target gives it, which is what rejection sampling against a distribution
with all its mass on the draft (Leviathan et al., 2023) accepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workers.engine.sampling.draws import uniform
from workers.engine.sampling.filters import draw, probabilities
from workers.engine.sampling.grammar import GrammarError
from workers.engine.sampling.logprobs import Chosen, with_logprobs
from workers.engine.sampling.penalties import penalise
from workers.engine.sampling.state import SamplingState
from workers.kernels.cpu import calls, layers

_CACHED_LOGITS = 1 << 18


def choose_windows(
    logits: Tensor, drafts: Sequence[Sequence[int]], states: Sequence[SamplingState]
) -> list[list[Chosen]]:
    """The next tokens of each answer: its accepted drafts and one more; the states have them, too.

    A window ends early with a token that ends its answer (`state.ended`). It has no token only if
    the answer's grammar turns out to lead nowhere, which `state.ended` says as well.

    Args:
        logits: float32 [rows, window, vocab]: at position j those of the token after the first j
            drafts; positions after a row's last draft are not read. Not changed.
        drafts: for each row at most window - 1 draft tokens.
        states: for each row the answer so far, which has not ended.
    """
    chosen: list[list[int]] = [[] for _ in states]
    plain = [row for row, state in enumerate(states) if state.sampling.plain]
    if plain:
        best: list[list[int]] = _highest(_rows(logits, plain)).tolist()
        for row, token_ids in zip(plain, best, strict=True):
            for token_id in token_ids:
                if not _take(token_id, drafts[row], states[row], chosen[row]):
                    break
    going = [row for row, state in enumerate(states) if not state.sampling.plain]
    for position in range(logits.shape[1]):
        masks = _grammar_masks(going, states, logits.shape[2])
        going = [row for row in going if states[row].ended is None]
        if not going:
            break
        still: list[int] = []
        for rows in _groups(going, logits):
            picked = _choose(_rows(logits[:, position], rows), rows, states, masks)
            for row, token_id in zip(rows, picked, strict=True):
                if _take(token_id, drafts[row], states[row], chosen[row]):
                    still.append(row)
        going = still
    return _reported(logits, chosen, states)


def _take(token_id: int, draft: Sequence[int], state: SamplingState, chosen: list[int]) -> bool:
    """Add a token to its window; whether the next position holds what comes after it."""
    position = len(chosen)
    chosen.append(token_id)
    state.append(token_id)
    return state.ended is None and position < len(draft) and draft[position] == token_id


def _groups(rows: list[int], logits: Tensor) -> list[list[int]]:
    """Rows to work on at once: on a CPU no more than stay in its caches, else all."""
    at_once = len(rows)
    if logits.device.type == "cpu":
        at_once = max(1, _CACHED_LOGITS // logits.shape[2])
    return [rows[start : start + at_once] for start in range(0, len(rows), at_once)]


def _grammar_masks(
    rows: Sequence[int], states: Sequence[SamplingState], vocab_size: int
) -> dict[int, Tensor]:
    """For each row with a grammar its allowed tokens; answers that cannot go on have ended."""
    masks: dict[int, Tensor] = {}
    for row in rows:
        state = states[row]
        if state.grammar is not None:
            try:
                masks[row] = state.grammar.allowed(vocab_size)
            except GrammarError as error:
                state.fail(error)
    return masks


def _choose(
    logits: Tensor,
    rows: Sequence[int],
    states: Sequence[SamplingState],
    masks: Mapping[int, Tensor],
) -> list[int]:
    """The next token of each of `rows`, from float32 [len(rows), vocab] of logits for them."""
    going = [states[row] for row in rows]
    penalised = [i for i, state in enumerate(going) if state.sampling.penalised]
    if penalised:
        counts = [going[i].counts(logits.shape[1], logits.device) for i in penalised]
        samplings = [going[i].sampling for i in penalised]
        changed = penalise(_rows(logits, penalised), samplings, counts)
        logits = _replaced(logits, penalised, changed)
    masked = [i for i, row in enumerate(rows) if row in masks]
    if masked:
        allowed = torch.stack([masks[rows[i]] for i in masked]).to(logits.device)
        changed = _rows(logits, masked).masked_fill(~allowed, -torch.inf)
        logits = _replaced(logits, masked, changed)
    sampled = [i for i, state in enumerate(going) if state.sampling.temperature > 0.0]
    if not sampled:
        return _integers(logits.argmax(dim=-1))
    samplings = [going[i].sampling for i in sampled]
    numbers = [uniform(going[i].sampling.seed, going[i].output_tokens) for i in sampled]
    drawn = draw(probabilities(_rows(logits, sampled), samplings), numbers)
    if len(sampled) == len(going):
        return _integers(drawn)
    picked = logits.argmax(dim=-1)
    picked[sampled] = drawn
    return _integers(picked)


def _reported(
    logits: Tensor, chosen: list[list[int]], states: Sequence[SamplingState]
) -> list[list[Chosen]]:
    """The windows with log-probabilities for those rows that asked for them."""
    places = [
        (row, position)
        for row, state in enumerate(states)
        if state.sampling.logprobs
        for position in range(len(chosen[row]))
    ]
    if not places:
        return [[Chosen(token_id) for token_id in window] for window in chosen]
    rows, positions = zip(*places, strict=True)
    told = iter(
        with_logprobs(
            logits[list(rows), list(positions)],
            [chosen[row][position] for row, position in places],
            [states[row].sampling.top_logprobs for row in rows],
        )
    )
    return [
        [next(told) if state.sampling.logprobs else Chosen(token_id) for token_id in window]
        for state, window in zip(states, chosen, strict=True)
    ]


def _rows(logits: Tensor, rows: Sequence[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[list(rows)]


def _highest(logits: Tensor) -> Tensor:
    return layers.highest(logits) if calls.enabled(logits) else logits.argmax(dim=-1)


def _replaced(logits: Tensor, rows: Sequence[int], changed: Tensor) -> Tensor:
    """`logits` with other values in some rows, made anew: the model's own stay as they are."""
    if len(rows) == len(logits):
        return changed
    logits = logits.clone()
    logits[list(rows)] = changed
    return logits


def _integers(tokens: Tensor) -> list[int]:
    values: list[int] = tokens.tolist()
    return values
