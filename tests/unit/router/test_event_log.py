"""A recorded run can be run again, and a log that does not fit is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protos.tandem.v1.inference_pb2 import SpeculationReport
from router import replay as command
from router.core.event_log import EventLogError, event_line, header_line, replay
from router.core.events import Ended, Event, PrefillDone, Reserved, StateArrived, TokensArrived
from router.core.lifecycle import Lifecycle
from router.core.policy import ClassPolicy, Policy, TenantPolicy
from router.core.tokens import TokenLogprob
from tests.unit.router.lifecycle_bench import HANDOFF, LENGTH, TICKET, Bench

_POLICY = Policy(
    classes=(ClassPolicy("a", 0.5, 0.04, 2.0),),
    tenants={"t": TenantPolicy(2.0, 5.0, 6.0)},
    local_prefill_tokens=0,
)


def _recorded() -> list[str]:
    lines = [header_line(_POLICY, 7)]
    core = Lifecycle(_POLICY, 7)
    bench = Bench()
    bench.core = core

    def feed(event: Event, after_s: float = 0.0) -> list[object]:
        bench.now_s += 0.25 + after_s
        out = core.handle(event, bench.now_s)
        lines.append(event_line(event, bench.now_s, out))
        return list(out)

    bench.feed = feed  # type: ignore[method-assign, assignment]
    bench.join("p")
    bench.join("d")
    bench.request(tenant="t")
    feed(Reserved("d", 7, TICKET))
    logprob = TokenLogprob(-0.5, ((40, -0.5), (41, -1.5)))
    feed(TokensArrived("p", [7], [0], [1], [40], [logprob]))
    feed(PrefillDone("p", 7, 3.0, HANDOFF))
    feed(StateArrived("d", 7))
    feed(Ended("d", 7, LENGTH, "", SpeculationReport(steps=3, drafted=[4], accepted=[2])))
    return lines


def test_a_log_gives_the_same_instructions_again() -> None:
    lines = _recorded()
    steps = list(replay(lines))
    assert len(steps) == len(lines) - 1
    assert all(step.same for step in steps)
    assert any(step.instructions for step in steps)
    assert [event_line(s.event, s.now_s, s.instructions) for s in steps] == lines[1:]


def test_a_core_that_decides_otherwise_is_noticed() -> None:
    lines = _recorded()
    header = json.loads(lines[0])
    header["policy"]["local_prefill_tokens"] = 100
    other = [step.same for step in replay([json.dumps(header), *lines[1:]])]
    assert not all(other)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1"),
        (["{}"], "line 1"),
        ([header_line(_POLICY, 1), "{"], "line 2"),
        ([header_line(_POLICY, 1), '["Nonsense", 1.0, "", {}]'], "line 2: not an event"),
        ([header_line(_POLICY, 1), '["Tick", 1.0, "", {"x": 1}]'], "line 2: not an event"),
    ],
)
def test_what_is_no_log_is_refused_with_its_line(lines: list[str], message: str) -> None:
    with pytest.raises(EventLogError, match=message):
        list(replay(lines))


def test_the_command_prints_what_happened_and_says_whether_it_came_out_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _recorded()
    log = tmp_path / "events.log"
    log.write_text("\n".join(lines) + "\n")
    assert command.main([str(log)]) == 0
    assert "SendReserve(worker_id='d', handle=7" in capsys.readouterr().out
    assert command.main([str(log), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    log.write_text("\n".join([*lines[:4], *lines[5:]]) + "\n")
    assert command.main([str(log), "--quiet"]) == 1
    assert "came out otherwise" in capsys.readouterr().out
