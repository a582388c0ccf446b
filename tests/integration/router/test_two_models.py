"""One router before the pools of two models: a request goes to those of the model that it names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import grpc
import pytest

from protos.tandem.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from protos.tandem.v1.common_pb2 import REASON_LENGTH
from router.config import ModelFolder, RouterConfig
from router.server import RouterServer
from workers.config import WorkerConfig
from workers.engine.commands import Sampling
from workers.engine.simulated.text import expected_answer
from workers.engine.simulated.times import LinearTimes
from workers.server import WorkerServer

_VOCABULARIES = {"small": 90, "large": 700}
_TIMEOUT_S = 60.0
_PROMPT = [5 + 3 * n for n in range(25)]
_TOKENS = 6


@dataclass
class _Router:
    http: str
    inference: inference_pb2_grpc.InferenceAsyncStub
    admin: admin_pb2_grpc.AdminAsyncStub


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[_Router]:
    """A prefill and a decode worker of each of two models that share nothing but the router."""
    records, folders = [], []
    async with AsyncExitStack() as stack:
        for model, vocab_size in _VOCABULARIES.items():
            folder = tmp_path / model
            folder.mkdir()
            limits = {"max_position_embeddings": 512, "vocab_size": vocab_size}
            (folder / "config.json").write_text(json.dumps(limits))
            folders.append(ModelFolder(model, str(folder)))
            prefill = WorkerConfig(
                worker_id=f"{model}-p",
                role="prefill",
                model_path=str(folder),
                model_name=model,
                engine="simulated",
                simulated=LinearTimes(step_ms=1.0),
            )
            for config in (prefill, replace(prefill, worker_id=f"{model}-d", role="decode")):
                server = WorkerServer(config)
                stack.push_async_callback(server.stop)
                records.append(await server.start())
        first, *others = folders
        made = RouterServer(
            RouterConfig(
                model_path=first.path,
                model_name=first.name,
                more_models=tuple(others),
                workers=tuple(records),
                grpc="127.0.0.1:0",
                http="127.0.0.1:0",
            ),
            validate=True,
        )
        stack.push_async_callback(made.stop)
        addresses = await made.start()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(addresses.grpc))
        async with asyncio.timeout(_TIMEOUT_S):
            yield _Router(
                f"http://{addresses.http}",
                inference_pb2_grpc.InferenceStub(channel),
                admin_pb2_grpc.AdminStub(channel),
            )


def _request(model: str) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        model=model,
        request_id=f"of {model}",
        token_ids=inference_pb2.TokenIds(ids=_PROMPT),
        sampling=inference_pb2.ClientSampling(max_tokens=_TOKENS, temperature=0, ignore_eos=True),
    )


def _expected(model: str) -> list[int]:
    return expected_answer(_PROMPT, Sampling(_TOKENS), _VOCABULARIES[model], _TOKENS)


@pytest.mark.parametrize(
    ("asked", "served"), [("small", "small"), ("large", "large"), ("", "small")]
)
async def test_a_request_is_answered_by_the_workers_of_its_model(
    router: _Router, asked: str, served: str
) -> None:
    token_ids: list[int] = []
    async for response in router.inference.Generate(_request(asked)):
        token_ids.extend(response.delta.token_ids)
    assert token_ids == _expected(served)
    assert response.finished.reason == REASON_LENGTH
    report = response.finished.report
    assert (report.prefill_worker, report.decode_worker) == (f"{served}-p", f"{served}-d")
    explained = await router.admin.Explain(admin_pb2.ExplainRequest(request_id=f"of {asked}"))
    assert explained.decode_worker == f"{served}-d"


async def test_a_model_that_is_not_served_is_refused_with_those_that_are(router: _Router) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await router.inference.Generate(_request("medium")).read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "use 'small' or 'large'" in str(refused.value.details())


async def test_openai_clients_see_and_choose_both(router: _Router) -> None:
    async with aiohttp.ClientSession(router.http) as http:
        listed = await (await http.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["small", "large"]
        one = await (await http.get("/v1/models/large")).json()
        assert one["id"] == "large"
        assert (await http.get("/v1/models/medium")).status == 404
        for model in _VOCABULARIES:
            body = {"model": model, "prompt": _PROMPT, "max_tokens": 4, "temperature": 0}
            async with http.post(
                "/v1/completions", json=body, headers={"x-tandem-report": "1"}
            ) as answer:
                told = await answer.json()
            assert told["model"] == model
            assert told["tandem"]["decode_worker"] == f"{model}-d"
        metrics = await (await http.get("/metrics")).text()
    for model in _VOCABULARIES:
        assert f'tandem_completion_tokens_total{{model="{model}"}} 4' in metrics
        assert f'tandem_workers{{model="{model}",role="decode"}} 1' in metrics
    assert metrics.count("# TYPE tandem_workers gauge") == 1


async def test_operators_see_all_workers_and_drain_any(router: _Router) -> None:
    status = await router.admin.GetStatus(admin_pb2.GetStatusRequest())
    assert {(one.worker_id, one.model) for one in status.workers} == {
        (f"{model}-{role}", model) for model in _VOCABULARIES for role in ("p", "d")
    }
    order = admin_pb2.DrainRequest(worker_id="large-p")
    steps = [step async for step in router.admin.Drain(order)]
    assert steps[-1].safe_to_delete
    status = await router.admin.GetStatus(admin_pb2.GetStatusRequest())
    duties = {one.worker_id: one.duty for one in status.workers}
    assert (duties["large-p"], duties["small-p"]) == ("safe_to_delete", "serving")
