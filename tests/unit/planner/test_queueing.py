"""Waits agree with the queues that have exact answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planner.queueing import mean_wait_s, percentile_wait_s

_LOADS = st.floats(0.05, 0.98)


def _mean(servers: int, load: float, scv: float) -> float:
    return float(mean_wait_s(np.asarray(float(servers)), np.asarray(load), np.asarray(1.0), scv))


@given(_LOADS)
def test_one_server_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    for scv in (0.0, 1.0, 4.0):
        assert _mean(1, load, scv) == pytest.approx(load / (1 - load) * (1 + scv) / 2)


@pytest.mark.parametrize("servers", [2, 8, 50])
@pytest.mark.parametrize("load", [0.6, 0.8, 0.95])
def test_several_servers_wait_about_as_erlang_says(servers: int, load: float) -> None:
    offered = servers * load
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) / (1 - load)
    waiting = last / (sum(terms) + last)
    exact = waiting / (servers * (1 - load))
    assert _mean(servers, load, 1.0) == pytest.approx(exact, rel=0.35, abs=0.02)


@given(_LOADS, st.integers(1, 64))
def test_waits_grow_with_load_and_shrink_with_servers(load: float, servers: int) -> None:
    assert _mean(servers, load, 1.0) <= _mean(servers, min(load + 0.01, 0.99), 1.0)
    assert _mean(servers + 1, load, 1.0) <= _mean(servers, load, 1.0)


def test_one_exponential_server_has_an_exponential_tail() -> None:
    # M/M/1: P(W > t) = u exp(-(1 - u) t).
    wait_s = percentile_wait_s(np.ones(()), np.asarray(0.8), np.ones(()), 1.0, 0.95)
    assert float(wait_s) == pytest.approx(math.log(0.8 / 0.05) / 0.2)


def test_requests_that_hardly_ever_wait_do_not_at_the_percentile() -> None:
    assert float(percentile_wait_s(np.ones(()), np.asarray(0.03), np.ones(()), 1.0, 0.95)) == 0.0


def test_an_overloaded_queue_waits_for_ever() -> None:
    assert _mean(4, 1.0, 1.0) > 1e8
