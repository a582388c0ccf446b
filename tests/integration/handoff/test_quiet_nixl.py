"""NIXL's progress thread as vLLM's workers on a CPU have it: asleep, and awake when it must be."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: the module changes NIXL for everybody in it. The target never calls NIXL
# after it has told where its memory is, as vLLM does not while it has nothing to do.
_TARGET = """
import json, sys
import torch
import workers.engine.vllm.quiet_nixl
from nixl._api import nixl_agent, nixl_agent_config
agent = nixl_agent("target", nixl_agent_config(num_threads=4))
memory = torch.full((1 << 20,), 7, dtype=torch.uint8)
agent.register_memory([memory])
metadata = agent.get_agent_metadata().hex()
print("told " + json.dumps([metadata, memory.data_ptr()]), flush=True)
sys.stdin.readline()
"""
_READER = """
import json, sys
from pathlib import Path
import torch
import workers.engine.vllm.quiet_nixl
from nixl._api import nixl_agent, nixl_agent_config
metadata, address = json.loads(sys.stdin.readline())
agent = nixl_agent("reader", nixl_agent_config(num_threads=4))
def states():
    stats = [path.read_text() for path in Path("/proc/self/task").glob("*/stat")]
    return [stat.rpartition(")")[2].split()[0] for stat in stats]
# All but the one that looks; at a moment when a thread does its work it looks again.
while states().count("R") > 1:
    pass
memory = torch.zeros(1 << 20, dtype=torch.uint8)
agent.register_memory([memory])
agent.add_remote_agent(bytes.fromhex(metadata))
here = agent.get_xfer_descs([(memory.data_ptr(), memory.nbytes, 0)], "DRAM")
there = agent.get_xfer_descs([(address, memory.nbytes, 0)], "DRAM")
read = agent.initialize_xfer("READ", here, there, "target", b"")
agent.transfer(read)
while agent.check_xfer_state(read) != "DONE":
    pass
assert int(memory.sum()) == 7 << 20
agent.release_xfer_handle(read)
"""
_TIMEOUT_S = 120.0


def test_an_agent_that_sleeps_is_read_from() -> None:
    target = subprocess.Popen(
        [sys.executable, "-c", _TARGET], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with target:
        assert target.stdout is not None
        told = next(line for line in target.stdout if line.startswith("told "))
        subprocess.run(
            [sys.executable, "-c", _READER],
            input=told.removeprefix("told "),
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
        target.kill()
