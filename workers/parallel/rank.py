"""A rank that follows: `python -m workers.parallel.rank`, started by rank 0 as its child.

It takes its config as one line of JSON on standard input, meets the other ranks, loads its part of
the model, and then runs every call that comes in on standard input, in step with the others. It
ends when standard input closes, so it never outlives rank 0, and with status 1 when a rank is lost.
On standard output it says how far it is: `joining`, then `ready`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO

import torch
from torch._C import _distributed_c10d as c10d

from workers.config import WorkerConfig
from workers.engine.native.part import device_of_rank, load_part
from workers.engine.native.passes import ModelPasses
from workers.model.config import ModelConfig
from workers.model.rank_config import ranks_per_group
from workers.parallel.communicator import Communicator
from workers.parallel.errors import RanksLost
from workers.parallel.frames import FrameError, read_call

JOINING, READY = "joining", "ready"
HOST = "127.0.0.1"
_HOP_B_PARTS = 2
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RankSetup:
    """What a follower is told at its start."""

    rank: int
    store_port: int
    worker: WorkerConfig

    def to_json(self) -> str:
        fields = {"rank": self.rank, "store_port": self.store_port, "worker": self.worker.to_json()}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> RankSetup:
        fields = json.loads(text)
        worker = WorkerConfig.from_json(fields["worker"])
        return cls(int(fields["rank"]), int(fields["store_port"]), worker)


def join(config: WorkerConfig, rank: int, store: c10d.Store) -> Communicator:
    """Meet the other ranks of a worker; raises RanksLost when one does not come."""
    model = ModelConfig.from_file(Path(config.model_path))
    layout = config.parallel
    return Communicator(
        store,
        rank,
        layout,
        ranks_per_group=ranks_per_group(model, layout),
        overlap_parts=_HOP_B_PARTS if config.hop_b else 1,
        device=device_of_rank(config, rank),
        timeout_s=config.collective_timeout_s,
    )


def follow(stream: IO[bytes], passes: ModelPasses) -> None:
    """Run calls until the stream ends.

    Raises:
        RanksLost: another rank was lost.
        FrameError: rank 0 ended in the middle of a call.
    """
    while (call := read_call(stream)) is not None:
        passes.run(call)


def main() -> None:
    """The process of a follower."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    setup = RankSetup.from_json(sys.stdin.buffer.readline().decode())
    sys.stdout.write(f"{JOINING}\n")
    sys.stdout.flush()
    status = 0
    try:
        if setup.worker.device == "cuda":
            torch.cuda.set_device(setup.rank)
        timeout = timedelta(seconds=setup.worker.collective_timeout_s)
        store = c10d.TCPStore(HOST, setup.store_port, is_master=False, timeout=timeout)
        communicator = join(setup.worker, setup.rank, store)
        passes = load_part(setup.worker, communicator)
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        follow(sys.stdin.buffer, passes)
    except (RanksLost, FrameError) as error:
        _LOG.error("rank %d ends: %s", setup.rank, error)
        status = 1
    # Threads of a backend may still wait for a rank that is gone; nothing here is worth it.
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    main()
