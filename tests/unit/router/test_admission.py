"""Who goes first, who may come at all, and who is told at once that it would wait in vain."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from protos.tandem.v1 import common_pb2
from router.core.admission import AdmissionQueue
from router.core.events import CancelRequested, Ended, Tick, WorkerLost
from router.core.instructions import Finish, SendPrefill
from router.core.policy import ClassPolicy, Policy, TenantPolicy
from router.core.request import Cause, Request, State
from router.core.shedding import Limits, Outflow
from tests.unit.router.lifecycle_bench import Bench, the_finish, tokens

_CLASSES = (ClassPolicy("strict", 0.5, 0.04, 4.0), ClassPolicy("batch", 10.0, 0.2, 1.0))


def _request(
    name: str, rank: int = 0, tenant: str = "", start_by_s: float = 0.0, cost: int = 100
) -> Request:
    request = Request(name, cost - 1, 1, rank, 0.0, tenant=tenant)
    request.start_by_s = start_by_s
    return request


def _served(queue: AdmissionQueue, count: int) -> list[Request]:
    out = []
    for _ in range(count):
        request = queue.head()
        assert request is not None
        queue.take(request)
        out.append(request)
    return out


def test_inside_a_class_the_least_slack_goes_first() -> None:
    queue = AdmissionQueue(Policy())
    for name, start_by_s in (("later", 3.0), ("soon", 1.0), ("latest", 9.0), ("next", 2.0)):
        queue.push(_request(name, start_by_s=start_by_s))
    assert [one.request_id for one in _served(queue, 4)] == ["soon", "next", "later", "latest"]


def test_those_that_cannot_be_in_time_yield_inside_their_class_and_are_served_after() -> None:
    queue = AdmissionQueue(Policy(classes=_CLASSES))
    late = _request("late", start_by_s=1.0)
    queue.push(late)
    queue.push(_request("timely", start_by_s=5.0))
    queue.push(_request("other", 1, start_by_s=9.0, cost=10))
    assert queue.defer(late)
    assert not queue.defer(late), "it yields already"
    assert queue.timely_cost(0) == 100.0, "a newcomer goes before it"
    assert queue.cost_ahead(0) == (200.0, 210.0)
    served = [one.request_id for one in _served(queue, 3)]
    assert served.index("timely") < served.index("late")
    assert queue.cost_ahead(0) == (0.0, 0.0)


def test_a_class_whose_requests_are_late_keeps_its_share() -> None:
    queue = AdmissionQueue(Policy(classes=_CLASSES))
    for number in range(50):
        queue.push(_request(f"s{number}", 0))
        queue.push(_request(f"b{number}", 1))
    for strict in [one for one in queue if not one.class_rank][1:]:
        assert queue.defer(strict)
    served = Counter(one.class_rank for one in _served(queue, 50))
    assert served == {0: 40, 1: 10}


def test_where_nobody_else_waits_there_is_nobody_to_yield_to() -> None:
    queue = AdmissionQueue(Policy(classes=_CLASSES))
    alone = _request("alone")
    queue.push(alone)
    queue.push(_request("of another class", 1))
    assert not queue.defer(alone)
    queue.push(_request("beside"))
    assert queue.defer(alone)


def test_those_that_come_back_yield_to_nobody() -> None:
    queue = AdmissionQueue(Policy())
    returned = _request("returned")
    queue.push_front(returned)
    assert not queue.defer(returned)
    assert queue.head() is returned


def test_slack_is_the_target_less_the_time_to_read_the_prompt() -> None:
    bench = Bench("d", slots=1)
    bench.request("running")
    bench.request("long")  # of 10 tokens, as all; but its deadline is nearer
    bench.request("hurried", deadline_s=bench.now_s + 0.1)
    out = bench.feed(Ended("d", 1, common_pb2.REASON_INVALID_ARGUMENT))
    assert SendPrefill("d", 2, "hurried", None) in out


def test_classes_share_by_weight_and_none_starves() -> None:
    queue = AdmissionQueue(Policy(classes=_CLASSES))
    for number in range(100):
        queue.push(_request(f"s{number}", 0))
        queue.push(_request(f"b{number}", 1))
    served = Counter(one.class_rank for one in _served(queue, 50))
    assert served == {0: 40, 1: 10}


def test_tenants_share_by_weight_whoever_sends_more() -> None:
    queue = AdmissionQueue(Policy(tenants={"double": TenantPolicy(weight=2.0)}))
    for number in range(200):
        queue.push(_request(f"g{number}", tenant="greedy"))
    for number in range(40):
        queue.push(_request(f"m{number}", tenant="modest"))
        queue.push(_request(f"d{number}", tenant="double"))
    served = Counter(one.tenant for one in _served(queue, 40))
    assert served == {"greedy": 10, "modest": 10, "double": 20}


def test_whoever_was_idle_has_saved_nothing_up() -> None:
    queue = AdmissionQueue(Policy())
    for number in range(50):
        queue.push(_request(f"a{number}", tenant="a"))
    _served(queue, 30)
    for number in range(50):
        queue.push(_request(f"b{number}", tenant="b"))
    served = Counter(one.tenant for one in _served(queue, 20))
    assert served == {"a": 10, "b": 10}


def test_those_that_come_back_go_before_all_others() -> None:
    queue = AdmissionQueue(Policy(classes=_CLASSES))
    queue.push(_request("strict", 0))
    queue.push_front(_request("returned", 1))
    assert [one.request_id for one in _served(queue, 2)] == ["returned", "strict"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from("ab"),
            st.integers(0, 5),
            st.booleans(),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_everything_pushed_is_served_once_or_discarded(
    pushes: list[tuple[int, str, int, bool, bool]],
) -> None:
    queue = AdmissionQueue(Policy(classes=_CLASSES))
    expected = set()
    for number, (rank, tenant, start_by_s, late, discarded) in enumerate(pushes):
        request = _request(f"r{number}", rank, tenant, float(start_by_s))
        queue.push(request)
        if late:
            queue.defer(request)
        if discarded:
            queue.discard(request)
            queue.discard(request)
        else:
            expected.add(request.request_id)
        assert len(queue) == len(expected)
    assert {one.request_id for one in queue} == expected
    served = [one.request_id for one in _served(queue, len(expected))]
    assert sorted(served) == sorted(expected)
    assert queue.head() is None
    assert queue.cost_ahead(0) == (0.0, 0.0)


def test_a_tenant_has_its_rate_and_is_told_when_to_come_again() -> None:
    tenants = {"metered": TenantPolicy(tokens_per_s=10.0, burst_tokens=30.0)}
    bench = Bench("d", slots=9, tenants=tenants)
    assert bench.request("a", tenant="metered") != []  # 15 tokens each
    assert bench.request("b", tenant="metered") != []
    finish = the_finish(bench.request("c", tenant="metered"))
    assert finish.reason == common_pb2.REASON_RATE_LIMITED
    assert finish.retry_after_s == 1.5
    assert bench.request("other", tenant="free") != []
    bench.now_s += 1.5
    assert bench.request("c2", tenant="metered") != []


def test_a_request_larger_than_the_burst_is_taken_when_the_bucket_is_full() -> None:
    limits = Limits(Policy(any_tenant=TenantPolicy(tokens_per_s=10.0, burst_tokens=30.0)))
    assert limits.take("t", 100.0, 0.0) == 0.0
    assert limits.take("t", 1.0, 0.0) > 7.0, "it left the bucket in debt"
    assert limits.take("t", 100.0, 9.9) > 0.0
    assert limits.take("t", 100.0, 10.0) == 0.0


def _backlog(**policy: object) -> Bench:
    """A worker that serves one request of 15 tokens each second, and two that wait."""
    bench = Bench("d", slots=1, queue_limit=50, breaker_failures=99, max_retries=0, **policy)
    for number in range(9):
        bench.request(f"w{number}", class_rank=1)
    for handle in range(1, 8):
        bench.now_s += 1.0
        bench.feed(tokens("d", 0, 40, handle=handle))
        bench.feed(Ended("d", handle, common_pb2.REASON_LENGTH))
    assert len(bench.core.queue) == 1
    return bench


def test_a_request_that_would_wait_too_long_is_told_at_once() -> None:
    bench = _backlog(patience=0.301)  # batch may wait 3 s
    assert bench.request("a", class_rank=1) == []
    assert bench.request("b", class_rank=1) == []
    assert bench.request("c", class_rank=1) == []
    finish = the_finish(bench.request("d", class_rank=1))
    assert finish.reason == common_pb2.REASON_OVERLOADED
    assert finish.retry_after_s is not None
    assert 0.5 < finish.retry_after_s < 2.0
    assert "may wait 3.0 s" in finish.detail


def test_its_own_deadline_counts_as_well() -> None:
    bench = _backlog()
    finish = the_finish(bench.request("d", class_rank=1, deadline_s=bench.now_s + 0.5))
    assert finish.reason == common_pb2.REASON_OVERLOADED


def test_the_least_strict_are_shed_first() -> None:
    bench = _backlog(patience=4.4)  # strict may wait 2.2 s, batch 44 s
    for number in range(6):
        assert bench.request(f"b{number}", class_rank=1) == []
    out: list[Finish] = []
    for number in range(4):
        arrived = bench.request(f"s{number}")
        out += [item for item in arrived if isinstance(item, Finish)]
    assert out
    strict = [item for item in out if item.request_id.startswith("s")]
    shed = [item for item in out if not item.request_id.startswith("s")]
    assert all(item.reason == common_pb2.REASON_OVERLOADED for item in out)
    assert shed, "a batch request made room"
    if strict:
        assert not any(one.class_rank for one in bench.core.queue), "all of them go first"


def test_a_full_queue_gives_the_place_of_the_least_strict_to_a_stricter_one() -> None:
    bench = Bench("d", slots=1, queue_limit=2)
    bench.request("running")
    bench.request("b1", class_rank=1)
    bench.request("b2", class_rank=1)
    finish = the_finish(bench.request("s"))
    assert (finish.request_id, finish.reason) == ("b2", common_pb2.REASON_OVERLOADED)
    bench.request("s2")
    finish = the_finish(bench.request("s3"))
    assert (finish.request_id, finish.reason) == ("s3", common_pb2.REASON_QUEUE_FULL)
    assert finish.retry_after_s is not None


def test_without_a_measured_outflow_nobody_is_shed() -> None:
    bench = Bench("d", slots=1, queue_limit=50, patience=0.001)
    assert bench.request("running") != []
    for number in range(18):
        assert bench.request(f"r{number}") == []


def _end(bench: Bench, handle: int) -> list[Finish]:
    """Decode has ended a request: its slot is free. Returns those that ended."""
    bench.feed(tokens("d", 0, 40, handle=handle))
    out = bench.feed(Ended("d", handle, common_pb2.REASON_LENGTH))
    return [item for item in out if isinstance(item, Finish)]


def test_a_request_that_is_too_late_lets_those_go_that_can_be_in_time() -> None:
    bench = Bench("d", slots=1, queue_limit=50)
    bench.request("running")
    bench.request("doomed")  # 0.5 s to its first token
    bench.now_s += 0.6
    bench.request("newcomer")
    _end(bench, 1)
    assert bench.state("newcomer") is State.PREFILLING
    assert bench.state("doomed") is State.QUEUED
    story = bench.core.explain("doomed")
    assert story is not None
    assert any(one.cause is Cause.YIELDS for one in story.transitions)
    _end(bench, 2)
    assert bench.state("doomed") is State.PREFILLING, "it is served when there is room"


def test_who_yields_for_as_long_as_it_may_wait_is_told_when_to_come_again() -> None:
    bench = Bench("d", slots=1, queue_limit=50, patience=4.0)  # 2 s
    bench.request("running")
    bench.request("doomed")
    bench.now_s += 0.6
    bench.request("newcomer")
    _end(bench, 1)
    due_s = bench.due_s
    assert due_s is not None
    assert due_s - 100.0 <= 2.0, "it asks to be woken when patience ends"
    finish = the_finish(bench.feed(Tick(), 1.5))
    assert (finish.request_id, finish.reason) == ("doomed", common_pb2.REASON_OVERLOADED)
    assert finish.retry_after_s is not None
    assert finish.retry_after_s > 0.0


def test_who_yielded_and_was_begun_is_not_told_to_come_again_when_its_worker_is_lost() -> None:
    bench = Bench("d", slots=1, queue_limit=50, patience=4.0)  # 2 s
    bench.request("running")
    bench.request("late")
    bench.now_s += 0.6
    bench.request("newcomer")
    _end(bench, 1)
    _end(bench, 2)
    assert bench.state("late") is State.PREFILLING
    bench.feed(tokens("d", 0, 40, handle=3))
    bench.feed(WorkerLost("d"))
    assert bench.state("late") is State.QUEUED
    out = bench.feed(Tick(), 10.0)
    assert not [item for item in out if isinstance(item, Finish)]
    assert bench.state("late") is State.QUEUED, "it goes on when there is a worker"


def test_when_all_that_waits_is_too_much_one_that_is_late_anyway_is_told_first() -> None:
    bench = Bench("d", slots=1, queue_limit=50, patience=8.0)  # 4 s, and one is served each second
    for number in range(6):
        bench.request(f"r{number}")
    for handle in range(1, 3):
        bench.now_s += 1.0
        (finish,) = _end(bench, handle)
        assert finish.reason == common_pb2.REASON_LENGTH, "nobody is refused yet"
    ended: list[Finish] = []
    for number in range(3):
        out = bench.request(f"n{number}")
        ended += [item for item in out if isinstance(item, Finish)]
    assert ended
    assert all(one.request_id.startswith("r") for one in ended), "newcomers may be in time"
    assert all(one.reason == common_pb2.REASON_OVERLOADED for one in ended)
    assert all(one.retry_after_s for one in ended)


def test_a_full_queue_gives_the_place_of_one_that_yields_to_a_newcomer() -> None:
    bench = Bench("d", slots=1, queue_limit=2)
    bench.request("running")
    bench.request("doomed")
    bench.now_s += 0.6
    bench.request("timely")
    _end(bench, 1)
    bench.request("second")
    finish = the_finish(bench.request("third"))
    assert (finish.request_id, finish.reason) == ("doomed", common_pb2.REASON_OVERLOADED)
    assert {one.request_id for one in bench.core.queue} == {"second", "third"}


def test_under_overload_what_is_served_is_in_time() -> None:
    # Three requests come in the time of one: with the oldest first everybody would be late.
    bench = Bench("d", slots=1, queue_limit=500, patience=1000.0)
    bench.request("r0")
    waits: list[float] = []
    for number in range(1, 120):
        bench.now_s += 0.1
        bench.request(f"r{number}")
        if number % 3 == 0:
            handle = number // 3
            _end(bench, handle)
            (running,) = (
                one for one in bench.core.requests.values() if one.state is not State.QUEUED
            )
            waits.append(bench.now_s - running.arrived_s)
    assert max(waits) <= 0.5
    assert len(bench.core.queue) > 60


def test_the_outflow_is_measured_only_while_somebody_waits() -> None:
    outflow = Outflow()
    outflow.served(100.0, 1.0)
    assert outflow.per_s(1.0) == 0.0, "it did not wait"
    outflow.filled(10.0)
    outflow.served(100.0, 11.0)
    assert 80.0 < outflow.per_s(11.0) <= 100.0
    assert outflow.per_s(14.0) < 30.0, "nothing has left for three seconds"
    outflow.emptied()
    assert 80.0 < outflow.per_s(99.0) <= 100.0


def test_a_cancelled_request_leaves_the_queue_at_once() -> None:
    bench = Bench("d", slots=1)
    bench.request("running")
    bench.request()
    bench.feed(CancelRequested("r", common_pb2.REASON_CLIENT_GONE))
    assert len(bench.core.queue) == 0
