"""vLLM's own server, and a Tandem router with one vLLM worker: both up at once, loaded in turns."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.bench.vllm.model import write_dense_model
from orchestrator.bench.vllm.settings import VllmBenchSettings
from orchestrator.errors import UserError
from orchestrator.runtime.child import Child
from orchestrator.runtime.ports import free_port
from orchestrator.runtime.router_process import Routers
from router.config import RouterConfig
from workers.config import WorkerConfig
from workers.registry import WorkerRecord

NAME = "bench"
_READY_S = 900.0
_POLL_S = 0.5
_STOP_S = 20.0
_BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Rig:
    """Base URLs of both servers."""

    bare: str
    tandem: str
    vocab_size: int
    fingerprint: str


@contextlib.contextmanager
def running_rig(settings: VllmBenchSettings) -> Iterator[Rig]:
    """Start both; stops them at the end. Raises UserError for what does not start."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-bench-")))
        model = folder / "model"
        write_dense_model(model, settings.tokenizer_from)
        worker = Child(
            "the vLLM worker",
            ["workers.server"],
            WorkerConfig(
                worker_id="decode",
                role="decode",
                model_path=str(model),
                model_name=NAME,
                engine="vllm",
                kv_tokens=settings.kv_tokens,
                max_requests=settings.concurrency,
                threads=settings.threads,
                vllm_args=settings.args,
                interpreter=str(settings.python),
            ).to_json(),
            folder / "worker.log",
            str(settings.python),
        )
        stack.callback(worker.stop)
        bare = stack.enter_context(_bare_server(settings, model, folder / "bare.log"))
        record = WorkerRecord.from_json(worker.wait_ready(_READY_S))
        routers = Routers(
            RouterConfig(
                model_path=str(model),
                model_name=NAME,
                workers=(record,),
                grpc="127.0.0.1:0",
                http="127.0.0.1:0",
            ),
            1,
            folder,
            folder,
        )
        stack.callback(routers.stop)
        tandem = f"http://{routers.wait_ready().http}"
        yield Rig(bare, tandem, record.vocab_size, record.model_fingerprint)


@contextlib.contextmanager
def _bare_server(settings: VllmBenchSettings, model: Path, log_path: Path) -> Iterator[str]:
    """The server that comes with vLLM, with the arguments that the worker has."""
    port = free_port("127.0.0.1")
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(settings.threads),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        str(settings.python),
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={model}",
        f"--served-model-name={NAME}",
        "--host=127.0.0.1",
        f"--port={port}",
        "--dtype=float32",
        f"--max-num-seqs={settings.concurrency}",
        f"--block-size={_BLOCK_TOKENS}",
        f"--num-gpu-blocks-override={settings.kv_tokens // _BLOCK_TOKENS + 1}",
        f"--kv-cache-memory-bytes={settings.kv_cache_bytes}",
        f"--max-model-len={min(settings.kv_tokens, settings.longest_tokens)}",
        *settings.args,
    ]
    with log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - the user's interpreter
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _READY_S
        while not _answers(f"{url}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log_path.read_text(errors="replace")[-2000:]
                raise UserError(f"vLLM's own server did not start:\n{tail}", f"log: {log_path}")
            time.sleep(_POLL_S)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5.0):  # noqa: S310 - our own server
            return True
    except (urllib.error.URLError, OSError):
        return False
