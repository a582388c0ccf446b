"""A rank that follows: `python -m workers.parallel.rank`, started by rank 0 as its child.

It takes its config as one line of JSON on standard input, meets the other ranks, loads its part of
the model, and then runs every call that comes in on standard input, in step with the others. Its
part of hand-offs it does in a thread beside that, with a NIXL agent and memory of its own. It
ends when standard input closes, so it never outlives rank 0, and with status 1 when a rank is lost.
On standard output it says how far it is: `joining`, then `ready` and its memory; then a line for
each event of a hand-off.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO

import torch
from torch._C import _distributed_c10d as c10d

from protos.tandem.v1.handoff_pb2 import RankTarget
from workers.config import WorkerConfig
from workers.engine.native.calls import Call
from workers.engine.native.part import device_of_rank, load_part, open_end
from workers.engine.native.passes import ModelPasses
from workers.handoff.messages import Command, Event, encode
from workers.handoff.ranks import RankDriver
from workers.model.config import ModelConfig
from workers.model.rank_config import ranks_per_group
from workers.parallel.communicator import Communicator
from workers.parallel.errors import RanksLost
from workers.parallel.frames import FrameError, read_frame

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


def follow(stream: IO[bytes], passes: ModelPasses, hand_off: Callable[[Command], object]) -> None:
    """Run calls, and pass commands on to `hand_off`, until the stream ends.

    Raises:
        RanksLost: another rank was lost.
        FrameError: rank 0 ended in the middle of a frame.
    """
    while (told := read_frame(stream)) is not None:
        if isinstance(told, Call):
            passes.run(told)
        else:
            hand_off(told)


class _Lines:
    """What this rank says to rank 0, line by line, from any of its threads."""

    def __init__(self) -> None:
        # Standard output is the channel: what libraries print goes to standard error.
        self._stream = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._lock = threading.Lock()

    def say(self, line: bytes) -> None:
        with self._lock:
            self._stream.write(line + b"\n")
            self._stream.flush()

    def tell(self, event: Event) -> None:
        self.say(encode(event))


def _target_in_words(target: RankTarget) -> str:
    return base64.b64encode(target.SerializeToString()).decode()


def read_target(words: str) -> RankTarget:
    """What a rank said of its memory when it was ready."""
    return RankTarget.FromString(base64.b64decode(words))


def _end_process(_: BaseException) -> None:
    """Half of a rank is none: rank 0 ends the group when this process ends."""
    logging.shutdown()
    os._exit(1)


def main() -> None:
    """The process of a follower."""
    lines = _Lines()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    setup = RankSetup.from_json(sys.stdin.buffer.readline().decode())
    lines.say(JOINING.encode())
    status = 0
    try:
        if setup.worker.device == "cuda":
            torch.cuda.set_device(setup.rank)
        timeout = timedelta(seconds=setup.worker.collective_timeout_s)
        store = c10d.TCPStore(HOST, setup.store_port, is_master=False, timeout=timeout)
        communicator = join(setup.worker, setup.rank, store)
        passes = load_part(setup.worker, communicator)
        end = open_end(setup.worker, passes, setup.rank)
        driver = RankDriver(end, time.monotonic, lines.tell, _end_process)
        lines.say(f"{READY} {_target_in_words(end.target)}".encode())
        follow(sys.stdin.buffer, passes, driver.post)
        driver.close()
    except (RanksLost, FrameError) as error:
        _LOG.error("rank %d ends: %s", setup.rank, error)
        status = 1
    # Threads of a backend may still wait for a rank that is gone; nothing here is worth it.
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    main()
