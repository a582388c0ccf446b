"""The memory that holds the state of all requests of one worker.

Exists as the only module that knows addresses: everybody else speaks of blocks, slots and
offsets. The tensors are allocated once and never move, because other workers write into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from protos.tandem.v1.handoff_pb2 import StateKind
from workers.model.state_tensors import StateTensors, by_layer
from workers.state.geometry import SSM_DTYPE, StateGeometry
from workers.state.memory import CopyPlan

# Runs shorter than this on average are gathered before they are looked at, so much at a time.
_SHORT_BYTES = 32 * 1024
_GATHERED_BYTES = 1 << 20
# Offsets or lengths in bytes, one for each run.
Spans = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes from `address` on."""

    address: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory that a network device may be pointed at, in the words of NIXL."""

    memory_type: str  # DRAM or VRAM
    device_id: int
    ranges: tuple[ByteRange, ...]


class StateStore:
    """Allocates the tensors of one rank, zeroed, and finds bytes in them."""

    def __init__(
        self,
        geometry: StateGeometry,
        *,
        blocks: int,
        slots: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.geometry = geometry
        self.device = torch.device(device)
        kv = self._zeros((blocks, *geometry.kv_block_shape), geometry.dtype)
        draft_kv = self._zeros((blocks, *geometry.draft_kv_block_shape), geometry.dtype)
        self.tensors = StateTensors(
            kv=by_layer(kv),
            conv=self._zeros((slots, *geometry.conv_shape), geometry.dtype),
            ssm=self._zeros((slots, *geometry.ssm_shape), SSM_DTYPE),
            draft_kv=by_layer(draft_kv),
            window_inputs=self._zeros((slots, *geometry.window_inputs_shape), geometry.dtype),
            window_steps=self._zeros((slots, *geometry.window_steps_shape), SSM_DTYPE),
        )
        # [slots, d]: the last position's hidden state, from which the next draft starts.
        self.draft_hidden = self._zeros((slots, geometry.draft_hidden_size), geometry.dtype)
        self._by_kind = {
            StateKind.STATE_KIND_ATTENTION_KV: kv,
            StateKind.STATE_KIND_MAMBA_CONV: self.tensors.conv,
            StateKind.STATE_KIND_MAMBA_SSM: self.tensors.ssm,
            StateKind.STATE_KIND_DRAFT_KV: draft_kv,
            StateKind.STATE_KIND_DRAFT_HIDDEN: self.draft_hidden,
        }

    def memory(self) -> DeviceMemory:
        """Everything that hand-offs may read or write; kinds without bytes are left out."""
        tensors = [tensor for tensor in self._by_kind.values() if tensor.numel()]
        on_gpu = self.device.type == "cuda"
        return DeviceMemory(
            memory_type="VRAM" if on_gpu else "DRAM",
            device_id=self.tensors.kv.get_device() if on_gpu else 0,
            ranges=tuple(ByteRange(tensor.data_ptr(), tensor.nbytes) for tensor in tensors),
        )

    def base(self, kind: StateKind.ValueType) -> ByteRange:
        """Where the tensor of a kind is; offsets of copies count from there."""
        tensor = self._by_kind[kind]
        return ByteRange(tensor.data_ptr(), tensor.nbytes)

    def contents(
        self, kind: StateKind.ValueType, offsets: Spans, lengths: Spans
    ) -> Iterator[memoryview]:
        """Bytes of a kind's tensor in the order given.

        Long runs in host memory come as views of it, neighbours as one. Short ones, and what is on
        a GPU, come as copies of many at once: thousands of calls would cost more than the bytes.

        Args:
            kind: whose tensor.
            offsets: uint64 [n], bytes from its beginning.
            lengths: uint64 [n], bytes.
        """
        flat = self._by_kind[kind].view(-1).view(torch.uint8)
        runs = _joined(offsets, lengths)
        if flat.is_cuda or len(runs) * _SHORT_BYTES > int(lengths.sum()):
            for part in _gathered(flat, offsets, lengths):
                yield part.cpu().numpy().data
            return
        live = flat.numpy().data
        for begin, end in runs:
            yield live[begin:end]

    def wait_written(self) -> None:
        """Wait until the device has done what it was given, so that others may read the state."""
        if self.device.type == "cuda":
            torch.cuda.default_stream(self.device).synchronize()

    def clear_tail(self, block: int, used_tokens: int) -> None:
        """Zero the places of a block after its first `used_tokens` tokens.

        Attention reads whole blocks: what an earlier request left there must at least be finite.
        """
        for kv in (self.tensors.kv, self.tensors.draft_kv):
            kv[block, :, :, :, used_tokens:].zero_()

    def copy(self, plan: CopyPlan) -> None:
        """Copy committed state from slot to slot and, if named, from block to block."""
        for slots in (self.tensors.conv, self.tensors.ssm, self.draft_hidden):
            slots[plan.target_slot] = slots[plan.source_slot]
        if plan.source_block is not None and plan.target_block is not None:
            for blocks in (self.tensors.kv, self.tensors.draft_kv):
                blocks[plan.target_block] = blocks[plan.source_block]

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def _joined(offsets: Spans, lengths: Spans) -> list[tuple[int, int]]:
    """(begin, end) of runs of bytes, those that follow each other without a gap as one."""
    ends = offsets + lengths
    firsts = np.flatnonzero(np.concatenate(([True], ends[:-1] != offsets[1:])))
    lasts = np.append(firsts[1:], len(offsets)) - 1
    return list(zip(offsets[firsts].tolist(), ends[lasts].tolist(), strict=True))


def _gathered(flat: torch.Tensor, offsets: Spans, lengths: Spans) -> Iterator[torch.Tensor]:
    """The runs one after the other, by rows of the widest size that divides them all."""
    width = int(np.gcd.reduce(np.concatenate((offsets, lengths))))
    counts = (lengths // np.uint64(width)).astype(np.int64)
    firsts = (offsets // np.uint64(width)).astype(np.int64)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = torch.from_numpy(np.repeat(firsts, counts) + within).to(flat.device)
    table = flat[: len(flat) // width * width].view(-1, width)
    for part in torch.split(rows, max(_GATHERED_BYTES // width, 1)):
        yield table.index_select(0, part).view(-1)
