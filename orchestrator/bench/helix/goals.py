"""What a group is to reach, and whether the findings of a bench show it. Pure."""

from __future__ import annotations

from collections import defaultdict

from orchestrator.bench.helix.run import Findings
from orchestrator.bench.targets import Goal, Target, judged

_NO_KVP = "no layout with KVP above 1 was measured"


def judge(findings: Findings) -> list[Target]:
    """A row for each goal, whether or not it was measured."""
    return [_as_formula(findings), _same_for_all_contexts(findings), _memory(findings)]


def _as_formula(findings: Findings) -> Target:
    goal = Goal("all-to-all bytes off the formula, worst step", 1, "bytes", "<")
    off = [
        abs(sent - case.formula_bytes)
        for case in findings.cases
        if case.formula_bytes
        for sent in case.exchange_bytes
    ]
    return judged(goal, max(off) if off else None, None if off else _NO_KVP)


def _same_for_all_contexts(findings: Findings) -> Target:
    goal = Goal("all-to-all bytes between context lengths, worst layout", 1, "bytes", "<")
    sent: dict[tuple[str, int], set[int]] = defaultdict(set)
    contexts: dict[tuple[str, int], set[int]] = defaultdict(set)
    for case in findings.cases:
        if case.formula_bytes:
            sent[case.layout, case.draft_tokens].update(case.exchange_bytes)
            contexts[case.layout, case.draft_tokens].add(case.context_tokens)
    compared = [max(sent[key]) - min(sent[key]) for key in sent if len(contexts[key]) > 1]
    why = None if compared else "fewer than two context lengths, or no KVP, were measured"
    return judged(goal, max(compared) if compared else None, why)


def _memory(findings: Findings) -> Target:
    """In interleaves, so that one row holds for all layouts."""
    goal = Goal("KV tokens of the fullest rank above total / KVP", 1, "interleaves", "<")
    above = [
        (memory.stored_tokens - memory.prompt_tokens / memory.kvp) / memory.interleave
        for memory in findings.memory
        if memory.kvp > 1
    ]
    return judged(goal, max(above) if above else None, None if above else _NO_KVP)
