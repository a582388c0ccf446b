"""`why`, `drain`, `flip` and `status` against a router and simulated workers in their processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.main import app
from orchestrator.client import Client
from orchestrator.runtime.child import Child
from protos.tandem.v1 import inference_pb2
from router.config import RouterConfig
from workers.config import WorkerConfig
from workers.engine.simulated.times import LinearTimes
from workers.registry import Role, WorkerRecord

_READY_S = 60.0


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a router with a prefill and two decode workers."""
    folder = tmp_path_factory.mktemp("cluster")
    limits = {"max_position_embeddings": 4096, "vocab_size": 500}
    (folder / "config.json").write_text(json.dumps(limits))
    roles: dict[str, Role] = {"p": "prefill", "d1": "decode", "d2": "decode"}
    with ExitStack() as stack:
        children = []
        for worker_id, role in roles.items():
            config = WorkerConfig(
                worker_id=worker_id,
                role=role,
                model_path=str(folder),
                model_name="m",
                engine="simulated",
                simulated=LinearTimes(step_ms=1.0, prompt_token_us=10.0),
            )
            log = folder / f"{worker_id}.log"
            children.append(Child(worker_id, ["workers.server"], config.to_json(), log))
            stack.callback(children[-1].stop)
        records = [WorkerRecord.from_json(child.wait_ready(_READY_S)) for child in children]
        config_json = RouterConfig(
            model_path=str(folder),
            model_name="m",
            workers=tuple(records),
            grpc="127.0.0.1:0",
            http="127.0.0.1:0",
        ).to_json()
        child = Child("router", ["router"], config_json, folder / "router.log")
        stack.callback(child.stop)
        yield json.loads(child.wait_ready(_READY_S))["grpc"]


def _run(router: str, *command: str) -> Result:
    return CliRunner().invoke(app, [*command, "--address", router])


def _document(router: str, *command: str) -> dict[str, object]:
    result = _run(router, *command, "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, object] = json.loads(result.stdout)
    return document


def _generate(router: str, request_id: str) -> inference_pb2.Finished:
    request = inference_pb2.GenerateRequest(
        request_id=request_id,
        token_ids=inference_pb2.TokenIds(ids=list(range(60))),
        sampling=inference_pb2.ClientSampling(max_tokens=8, ignore_eos=True),
    )
    with Client(router) as client:
        *_, last = client.generate(request)
    return last.finished


def test_why_tells_the_story_of_a_request_and_of_the_last_one(router: str) -> None:
    finished = _generate(router, "told")
    story = _document(router, "why", "told")
    assert story == _document(router, "why")
    assert (story["state"], story["retries"]) == ("finished", 0)
    assert story["decode_worker"] == finished.report.decode_worker
    assert isinstance(story["steps"], list)
    assert [step["state"] for step in story["steps"]][:2] == ["queued", "reserved"]
    assert story["steps"][-1]["reason"] == "REASON_LENGTH"
    assert isinstance(story["placements"], list)
    candidates = story["placements"][0]["candidates"]
    assert {one["decode_worker"] for one in candidates} == {"d1", "d2"}
    (chosen,) = [one for one in candidates if one["chosen"]]
    parts = [chosen[part] for part in ("wait_ms", "read_ms", "transfer_ms", "step_ms")]
    assert chosen["expected_ms"] == pytest.approx(sum(parts), abs=0.01)
    told = _run(router, "why", "told")
    assert told.stdout.startswith("told: finished on p -> d")
    assert "candidate p -> d1" in told.stdout


def test_why_says_when_nobody_knows_the_request(router: str) -> None:
    result = _run(router, "why", "never")
    assert result.exit_code == 1
    assert "'never' is not known" in result.stderr


def test_a_drained_worker_gets_nothing_until_it_is_resumed(router: str) -> None:
    result = _run(router, "drain", "d1")
    assert (result.exit_code, result.stdout) == (0, "d1 is safe to delete\n")
    for number in range(3):
        assert _generate(router, f"drained-{number}").report.decode_worker == "d2"
    assert "safe to delete" in _run(router, "status").stdout
    answer = _document(router, "drain", "d1", "--resume")
    assert answer == {"worker_id": "d1", "draining": False, "safe_to_delete": False}


def test_a_flipped_worker_has_the_other_role(router: str) -> None:
    assert _document(router, "flip", "d2", "prefill") == {"worker_id": "d2", "role": "prefill"}
    status = _document(router, "status")
    assert isinstance(status["workers"], list)
    assert {one["worker_id"]: one["role"] for one in status["workers"]}["d2"] == "prefill"
    assert isinstance(status["matching"], dict)
    assert 0.0 <= status["matching"]["decode_idle_share"] <= 1.0
    assert _run(router, "flip", "d2", "decode").stdout == "d2 is a decode worker\n"
    assert "matched " in _run(router, "status").stdout


@pytest.mark.parametrize("command", [["drain", "absent"], ["flip", "absent", "decode"]])
def test_an_unknown_worker_is_named(router: str, command: list[str]) -> None:
    result = _run(router, *command)
    assert result.exit_code == 1
    assert "'absent' is not connected" in result.stderr
