"""The OpenAI HTTP API of a real router in front of fake workers, spoken to by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from protos.tandem.v1 import common_pb2
from tests.integration.router.conftest import Running, StartRouter
from tests.unit.router.tiny_model import MAX_MODEL_TOKENS, VOCAB_SIZE

TIMEOUT_S = 20.0


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield session


async def events_of(response: aiohttp.ClientResponse) -> list[str]:
    raw = (await response.read()).decode()
    return [event.removeprefix("data: ") for event in raw.split("\n\n") if event]


async def test_prompts_come_as_text_as_ids_or_alone_in_a_list(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router()
    ids = router.tokenizer.encode("The fox").ids
    for prompt in ("The fox", ["The fox"], ids, [ids]):
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 5}
        async with client.post(f"{router.http}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["usage"]["prompt_tokens"] == len(ids)
        assert list(router.script.prefills[-1].token_ids) == ids


async def test_left_out_max_tokens_is_sixteen_for_completions_and_what_fits_for_chat(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router()
    async with client.post(f"{router.http}/v1/completions", json={"prompt": "x"}) as response:
        assert (await response.json())["usage"]["completion_tokens"] == 16
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    async with client.post(f"{router.http}/v1/chat/completions", json=body) as response:
        usage = (await response.json())["usage"]
    assert usage["total_tokens"] == MAX_MODEL_TOKENS
    prompt = router.tokenizer.decode(
        list(router.script.prefills[-1].token_ids), skip_special_tokens=False
    )
    assert prompt == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


async def test_a_stream_ends_with_usage_and_done(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router()
    body = {
        "prompt": "x",
        "max_tokens": 40,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with client.post(
        f"{router.http}/v1/completions", json=body, headers={"x-tandem-report": "1"}
    ) as response:
        assert response.content_type == "text/event-stream"
        *events, done = await events_of(response)
    assert done == "[DONE]"
    *pieces, last, usage = [json.loads(event) for event in events]
    text = "".join(piece["choices"][0]["text"] for piece in pieces)
    assert text == router.tokenizer.decode([router.script.token(i) for i in range(40)])
    assert {piece["usage"] for piece in pieces} == {None}
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["tandem"]["decode_worker"] == "decode-0"
    assert last["tandem"]["handoff"]["kv_bytes"] == "1024"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 40


async def test_logprobs_of_chosen_tokens_are_reported(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router()
    body = {"prompt": "x", "max_tokens": 4, "logprobs": 1, "temperature": 0}
    async with client.post(f"{router.http}/v1/completions", json=body) as response:
        choice = (await response.json())["choices"][0]
    assert choice["logprobs"]["token_logprobs"] == [-0.25, -0.5, -0.75, -1.0]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert choice["logprobs"]["text_offset"][0] == 0
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "logprobs": True}
    async with client.post(f"{router.http}/v1/chat/completions", json=body) as response:
        content = (await response.json())["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [-0.25, -0.5]
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"]


async def test_alternatives_come_with_logprobs(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router()
    body: dict[str, object] = {"prompt": "x", "max_tokens": 2, "logprobs": 2}
    async with client.post(f"{router.http}/v1/completions", json=body) as response:
        logprobs = (await response.json())["choices"][0]["logprobs"]
    assert [list(top.values()) for top in logprobs["top_logprobs"]] == [
        [-0.25, -1.25],
        [-0.5, -1.5],
    ]
    assert [next(iter(top)) for top in logprobs["top_logprobs"]] == logprobs["tokens"]
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 2,
        "logprobs": True,
        "top_logprobs": 3,
    }
    async with client.post(f"{router.http}/v1/chat/completions", json=body) as response:
        content = (await response.json())["choices"][0]["logprobs"]["content"]
    for entry in content:
        values = [entry["logprob"] - rank for rank in range(3)]
        assert [other["logprob"] for other in entry["top_logprobs"]] == values
        assert entry["top_logprobs"][0]["token"] == entry["token"]


async def test_n_choices_are_answered_whole(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router()
    body = {"prompt": "x", "max_tokens": 4, "n": 3, "seed": 5}
    headers = {"x-tandem-report": "1"}
    async with client.post(f"{router.http}/v1/completions", json=body, headers=headers) as response:
        answer = await response.json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["text"] for choice in answer["choices"]} == {
        router.tokenizer.decode([router.script.token(i) for i in range(4)])
    }
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["prompt_tokens"] == 1
    assert len(answer["tandem"]) == 3
    seeds = {prefill.item.sampling.seed for prefill in router.script.prefills}
    assert len(seeds) == 3
    assert 5 in seeds


async def test_n_choices_are_streamed_with_their_index(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router()
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 20,
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with client.post(f"{router.http}/v1/chat/completions", json=body) as response:
        *events, done = await events_of(response)
    assert done == "[DONE]"
    *pieces, usage = [json.loads(event) for event in events]
    expected = router.tokenizer.decode([router.script.token(i) for i in range(20)])
    for index in range(2):
        own = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(piece["delta"].get("content", "") for piece in own) == expected
        assert [piece["finish_reason"] for piece in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == 40


async def test_a_client_that_leaves_ends_all_its_choices(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router(pause_after=5)
    body = {"prompt": "x", "max_tokens": 50, "stream": True, "n": 2}
    async with client.post(f"{router.http}/v1/completions", json=body) as response:
        await asyncio.wait_for(router.script.paused.wait(), TIMEOUT_S)
        response.close()
    cancelled: set[int] = set()
    while len(cancelled) < 2:
        _, handle = await asyncio.wait_for(router.script.cancels.get(), TIMEOUT_S)
        cancelled.add(handle)


@pytest.mark.parametrize(
    ("path", "form", "grammar"),
    [
        ("chat/completions", {"response_format": {"type": "text"}}, None),
        (
            "chat/completions",
            {"response_format": {"type": "json_object"}},
            common_pb2.Grammar(json_object=True),
        ),
        (
            "chat/completions",
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "null"}, "strict": True},
                }
            },
            common_pb2.Grammar(json_schema='{"type": "null"}'),
        ),
        ("completions", {"structured_outputs": {"regex": "a+"}}, common_pb2.Grammar(regex="a+")),
        (
            "completions",
            {"structured_outputs": {"choice": ["a.b", "c"]}},
            common_pb2.Grammar(regex=r"(a\.b|c)"),
        ),
        (
            "completions",
            {"structured_outputs": {"json": {"type": "null"}}},
            common_pb2.Grammar(json_schema='{"type": "null"}'),
        ),
    ],
)
async def test_the_form_of_an_answer_reaches_the_worker(
    start_router: StartRouter,
    client: aiohttp.ClientSession,
    path: str,
    form: dict[str, object],
    grammar: common_pb2.Grammar | None,
) -> None:
    router = await start_router()
    prompt = (
        {"messages": [{"role": "user", "content": "x"}]}
        if path.startswith("chat")
        else {"prompt": "x"}
    )
    body = {**prompt, **form, "max_tokens": 1, "min_p": 0.5, "repetition_penalty": 1.5, "top_k": 3}
    async with client.post(f"{router.http}/v1/{path}", json=body) as response:
        assert response.status == 200
    sampling = router.script.prefills[0].item.sampling
    assert sampling.HasField("grammar") == (grammar is not None)
    if grammar is not None:
        assert sampling.grammar == grammar
    assert (sampling.min_p, sampling.repetition_penalty, sampling.top_k) == (0.5, 1.5, 3)


async def test_a_client_that_leaves_frees_the_worker(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router(pause_after=5)
    for stream in (True, False):
        router.script.paused.clear()
        body = {"prompt": "x", "max_tokens": 50, "stream": stream}
        call = asyncio.create_task(client.post(f"{router.http}/v1/completions", json=body))
        await asyncio.wait_for(router.script.paused.wait(), TIMEOUT_S)
        if stream:
            (await call).close()
        else:
            call.cancel()
        # Prefill's last word may still be on its way, so that it is told as well.
        cancelled = ""
        while cancelled != "decode-0":
            cancelled, _ = await asyncio.wait_for(router.script.cancels.get(), TIMEOUT_S)
        router.script.go_on.set()
        router.script.go_on.clear()


async def test_a_worker_lost_before_the_first_byte_is_503(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router(prefill=0, pause_after=0)
    body = {"prompt": "x", "stream": True}
    call = asyncio.create_task(client.post(f"{router.http}/v1/completions", json=body))
    await asyncio.wait_for(router.script.paused.wait(), TIMEOUT_S)
    await router.decode[0].kill()
    async with await call as response:
        assert response.status == 503
        assert response.headers["x-tandem-reason"] == "REASON_WORKER_LOST"
        assert "decode-0" in (await response.json())["error"]["message"]
    async with client.get(f"{router.http}/health") as response:
        assert response.status == 503


async def test_a_worker_lost_later_is_an_error_in_the_stream(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router(pause_after=5)
    body = {"prompt": "x", "stream": True, "max_tokens": 50}
    async with client.post(f"{router.http}/v1/completions", json=body) as response:
        await asyncio.wait_for(router.script.paused.wait(), TIMEOUT_S)
        await router.decode[0].kill()
        events = await events_of(response)
    assert response.status == 200
    error = json.loads(events[-1])["error"]
    assert error["type"] == "server_error"
    assert "decode-0" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": ""}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("completions", {"prompt": [1, True]}, "prompt"),
        ("completions", {"prompt": [VOCAB_SIZE]}, "prompt"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("completions", {"prompt": [5] * MAX_MODEL_TOKENS}, "prompt"),
        ("completions", {}, "prompt"),
        ("completions", {"prompt": "x", "model": "other"}, "model"),
        ("completions", {"prompt": "x", "temperature": 2.1}, "temperature"),
        ("completions", {"prompt": "x", "temperature": "hot"}, "temperature"),
        ("completions", {"prompt": "x", "top_p": 0}, "top_p"),
        ("completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("completions", {"prompt": "x", "max_tokens": 10_000}, "max_tokens"),
        ("completions", {"prompt": "x", "n": 17}, "n"),
        ("completions", {"prompt": "x", "n": 2, "best_of": 3}, "best_of"),
        ("completions", {"prompt": "x", "logprobs": 21}, "logprobs"),
        ("completions", {"prompt": "x", "presence_penalty": 3}, "presence_penalty"),
        ("completions", {"prompt": "x", "structured_outputs": {"regex": ""}}, "structured_outputs"),
        (
            "completions",
            {"prompt": "x", "structured_outputs": {"regex": "a", "json": {}}},
            "structured_outputs",
        ),
        (
            "completions",
            {
                "prompt": "x",
                "structured_outputs": {"regex": "a"},
                "response_format": {"type": "json_object"},
            },
            "structured_outputs",
        ),
        ("completions", {"prompt": "x", "guided_regex": "a"}, "guided_regex"),
        ("completions", {"prompt": "x", "echo": True}, "echo"),
        ("completions", {"prompt": "x", "seed": 1 << 70}, "seed"),
        ("completions", {"prompt": "x", "stop": [""]}, "stop"),
        ("completions", {"prompt": "x", "tempreature": 1}, "tempreature"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content"),
        ("chat/completions", {"messages": [{"role": "forbidden", "content": "x"}]}, "messages"),
        (
            "chat/completions",
            {
                "messages": [{"role": "user", "content": "x"}],
                "response_format": {"type": "xml"},
            },
            "response_format",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2},
            "top_logprobs",
        ),
    ],
)
async def test_what_is_wrong_is_named(
    start_router: StartRouter,
    client: aiohttp.ClientSession,
    path: str,
    body: dict[str, object],
    param: str,
) -> None:
    router = await start_router()
    async with client.post(f"{router.http}/v1/{path}", json=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["param"] == param
    assert error["message"].startswith(param)
    assert error["type"] == "invalid_request_error"
    assert router.script.items.empty()


async def test_an_unknown_field_is_told_its_nearest_name(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router = await start_router()
    body = {"prompt": "x", "tempreature": 1}
    async with client.post(f"{router.http}/v1/completions", json=body) as response:
        assert "did you mean temperature?" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v1/completions", b"{", 400, "not JSON"),
        ("POST", "/v1/completions", b"[1]", 400, "body"),
        ("POST", "/v1/completions", b'{"prompt": "' + b"x" * 70_000 + b'"}', 413, "larger than"),
        ("GET", "/v1/completions", None, 405, "Method Not Allowed"),
        ("GET", "/v1/nothing", None, 404, "Not Found"),
        ("GET", "/v1/models/other", None, 404, "'tiny'"),
    ],
)
async def test_errors_have_the_shape_of_openai_whatever_went_wrong(
    start_router: StartRouter,
    client: aiohttp.ClientSession,
    method: str,
    path: str,
    body: bytes | None,
    status: int,
    words: str,
) -> None:
    router = await start_router()
    async with client.request(method, f"{router.http}{path}", data=body) as response:
        assert response.status == status
        error = (await response.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]


async def test_an_internal_error_shows_a_reference_and_no_trace(
    start_router: StartRouter, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = await start_router()

    def broken(name: str) -> None:
        raise KeyError("a secret of the code")

    monkeypatch.setattr(router.server.models, "of", broken)
    async with client.post(f"{router.http}/v1/completions", json={"prompt": "x"}) as response:
        assert response.status == 500
        text = await response.text()
    assert "secret" not in text
    assert "log" in text


async def test_another_request_under_a_running_id_is_a_conflict(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router: Running = await start_router(pause_after=2)
    headers, url = {"x-request-id": "same"}, f"{router.http}/v1/completions"
    first = asyncio.create_task(client.post(url, json={"prompt": "x"}, headers=headers))
    await asyncio.wait_for(router.script.paused.wait(), TIMEOUT_S)
    async with client.post(url, json={"prompt": "y"}, headers=headers) as response:
        assert response.status == 409
    router.script.go_on.set()
    async with await first as response:
        assert response.status == 200
        assert response.headers["x-request-id"] == "same"


async def test_metrics_count_requests_tokens_and_times(
    start_router: StartRouter, client: aiohttp.ClientSession
) -> None:
    router: Running = await start_router()
    body = {"prompt": "The fox", "max_tokens": 7, "ignore_eos": True}
    for _ in range(3):
        async with client.post(f"{router.http}/v1/completions", json=body) as response:
            assert response.status == 200
    async with client.post(f"{router.http}/v1/completions", json={"prompt": ""}) as response:
        assert response.status == 400
    async with client.get(f"{router.http}/metrics") as response:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = (await response.text()).splitlines()
    values = {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }
    assert values['tandem_requests_total{reason="REASON_LENGTH"}'] == 3
    assert values["tandem_completion_tokens_total"] == 21
    assert values["tandem_ttft_seconds_count"] == values['tandem_ttft_seconds_bucket{le="+Inf"}']
    assert values["tandem_ttft_seconds_count"] == values["tandem_itl_seconds_count"] == 3
    assert values["tandem_router_request_seconds_count"] == 3
    assert values["tandem_running_requests"] == values["tandem_queue_requests"] == 0
    assert values['tandem_workers{role="prefill"}'] == values['tandem_workers{role="decode"}'] == 1
