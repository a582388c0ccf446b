"""Loads against OpenAI endpoints that are not ours, over real sockets."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from loadgen.asking import Asking
from loadgen.clients.http_client import Api, HttpClient
from loadgen.errors import LoadError
from loadgen.figures import Targets
from loadgen.load import Load, LoadRun, opened
from loadgen.prompts.source import PromptSource
from loadgen.prompts.tokens import TextTokens
from loadgen.results import Run
from loadgen.sessions import Session, Turn
from loadgen.speedbench.results import document
from loadgen.speedbench.rows import SAMPLE, read_questions
from loadgen.speedbench.sessions import sessions_of
from orchestrator.cli.load_run import allow_many_sockets
from tests.integration.loadgen.stand_in import StandIn, serving
from tests.unit.router.tiny_model import byte_level_tokenizer

TARGETS = Targets(10_000.0, 10_000.0)
TIMEOUT_S = 60.0
OPEN_STREAMS = 2_000


def at_once(count: int, answer_tokens: int = 6) -> list[Session]:
    turn = Turn(8, answer_tokens)
    return [Session(number, 0.0, (turn,)) for number in range(count)]


async def run_load(client: HttpClient, sessions: list[Session], api: Api = "completions") -> Run:
    async with opened(client) as endpoint:
        tokens = TextTokens(byte_level_tokenizer())
        asking = Asking(
            PromptSource(tokens.encode("The quick brown fox jumps. " * 50), 320),
            "messages" if api == "chat" else "tokens",
            tokens,
        )
        return await LoadRun(client, Load(sessions), TARGETS).run(endpoint, asking)


async def test_tokens_of_chunks_come_from_the_endpoint_where_it_tells_them() -> None:
    stand_in = StandIn()
    async with serving(stand_in) as url:
        run = await run_load(HttpClient(url), at_once(3))
    (record, *_) = run.recorder.records
    assert (record.good, record.tokens, record.chunks) == (True, 6, 3)
    assert record.prompt_tokens == 7
    accepted = run.document()["acceptance"]
    assert accepted == {
        "length": 2.0,
        "conditional": [pytest.approx(2 / 3), pytest.approx(1 / 2)],
        "steps": 9,
        "measured": "usage of chunks",
    }
    assert [body["prompt"] for body in stand_in.bodies[1:]] != [stand_in.bodies[1]["prompt"]] * 3


async def test_a_stricter_endpoint_is_asked_for_less_and_its_chunks_are_tokenised() -> None:
    stand_in = StandIn(knows_chunk_usage=False, knows_ignore_eos=False)
    tokens = TextTokens(byte_level_tokenizer())
    async with serving(stand_in) as url:
        run = await run_load(HttpClient(url + "/v1", tokenizer=tokens), at_once(2))
    assert all("ignore_eos" not in body for body in stand_in.bodies)
    record = run.recorder.records[0]
    assert record.measured == "tokenised chunks"
    assert record.speculation is not None
    lengths = [len(tokens.encode(text)) for text, _ in stand_in.chunks]
    assert sorted(record.speculation.lengths.elements()) == sorted(lengths)
    assert record.tokens == 6  # of the usage at the end


async def test_a_chat_carries_its_answers() -> None:
    stand_in = StandIn()
    session = Session(0, 0.0, (Turn(8, 6), Turn(5, 6)))
    async with serving(stand_in) as url:
        run = await run_load(HttpClient(url, api="chat"), [session], "chat")
    assert [record.good for record in run.recorder.records] == [True, True]
    _, first, second = (body["messages"] for body in stand_in.bodies)
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert second[:2] == [*first, {"role": "assistant", "content": " a b c d e f"}]
    assert second[2]["role"] == "user"


@pytest.mark.parametrize(
    ("stand_in", "reason"),
    [
        (StandIn(status=429), "HTTP 429"),
        (StandIn(breaks_off=True), "broken stream"),
        (StandIn(chunks=((" word" * 2**18, 1),)), "bad event"),
    ],
)
async def test_failures_are_counted_by_reason(stand_in: StandIn, reason: str) -> None:
    async with serving(stand_in) as url:
        report = (await run_load(HttpClient(url), at_once(4))).document()
    assert report["failed"] == {reason: 4}
    assert report["finished"] == 0


async def test_an_answer_that_does_not_go_on_times_out() -> None:
    stand_in = StandIn(hold=True)
    async with serving(stand_in) as url:
        report = (await run_load(HttpClient(url, timeout_s=2.0), at_once(2))).document()
    assert report["failed"] == {"timeout": 2}
    assert report["ttft_ms"] is None


async def test_a_connection_that_is_cut_breaks_its_stream() -> None:
    stand_in = StandIn(cuts_off=True)
    async with serving(stand_in) as url:
        report = (await run_load(HttpClient(url), at_once(2))).document()
    assert report["failed"] == {"broken stream": 2}


@pytest.mark.parametrize(("status", "hint"), [(429, "wait"), (500, "log"), (404, "--api chat")])
async def test_an_endpoint_that_refuses_its_first_request_is_told_about(
    status: int, hint: str
) -> None:
    async with serving(StandIn(status=status, from_the_first=True)) as url:
        with pytest.raises(LoadError, match=f"a request of one token gives {status}") as refused:
            await run_load(HttpClient(url), at_once(1))
    assert hint in refused.value.hint


async def test_tls_where_there_is_none_is_told_about() -> None:
    async with serving(StandIn()) as url:
        with pytest.raises(LoadError, match="does not speak TLS") as refused:
            await run_load(HttpClient(url.replace("http:", "https:")), at_once(1))
    assert refused.value.hint == "try http://"


async def test_nobody_there_is_one_clear_error() -> None:
    with pytest.raises(LoadError, match=r"--target http://127\.0\.0\.1:9"):
        await run_load(HttpClient("http://127.0.0.1:9"), at_once(1))


async def test_speed_bench_asks_any_endpoint() -> None:
    questions = read_questions(SAMPLE)
    stand_in = StandIn()
    async with serving(stand_in) as url:
        client = HttpClient(url, api="chat")
        async with opened(client) as endpoint:
            asking = Asking(None, "messages", None, ignore_eos=False)
            load = Load(sessions_of(questions, 64), users=8)
            run = await LoadRun(client, load, TARGETS).run(endpoint, asking)
    report = document(questions, run.recorder.records, {})
    assert report["answered"] == len(questions)
    assert report["acceptance_length"] == pytest.approx(2.0)
    assert report["acceptance_measured"] == "usage of chunks"
    asked = [body["messages"] for body in stand_in.bodies[1:]]
    turns = itertools.chain(*(question.turns for question in questions))
    last = [messages[-1]["content"] for messages in asked if isinstance(messages, list)]
    assert sorted(last) == sorted(turns)


async def test_one_process_holds_two_thousand_streams_over_http() -> None:
    allow_many_sockets()
    stand_in = StandIn(hold=True)
    async with asyncio.timeout(TIMEOUT_S), serving(stand_in) as url:
        running = asyncio.create_task(run_load(HttpClient(url), at_once(OPEN_STREAMS)))
        await stand_in.all_open(OPEN_STREAMS)
        stand_in.go_on.set()
        report = (await running).document()
    assert report["finished"] == OPEN_STREAMS
    client = report["client"]
    assert isinstance(client, dict)
    assert client["most_open"] == OPEN_STREAMS
