"""The memory that holds the state of all requests of one worker.

Exists as the only module that knows addresses: everybody else speaks of blocks, slots and
regions. The tensors are allocated once and never move, because other workers write into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from protos.tandem.v1.handoff_pb2 import StateKind
from workers.model.state_tensors import StateTensors
from workers.state.geometry import SSM_DTYPE, StateGeometry
from workers.state.layout import Region, StateLayout
from workers.state.memory import CopyPlan


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
    """Allocates the tensors, zeroed, and translates regions into addresses and bytes."""

    def __init__(
        self,
        geometry: StateGeometry,
        *,
        blocks: int,
        slots: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.geometry = geometry
        self.layout = StateLayout(geometry)
        self.device = torch.device(device)
        self.tensors = StateTensors(
            kv=self._zeros((blocks, *geometry.kv_block_shape), geometry.dtype),
            conv=self._zeros((slots, *geometry.conv_shape), geometry.dtype),
            ssm=self._zeros((slots, *geometry.ssm_shape), SSM_DTYPE),
            draft_kv=self._zeros((blocks, *geometry.draft_kv_block_shape), geometry.dtype),
            window_inputs=self._zeros((slots, *geometry.window_inputs_shape), geometry.dtype),
            window_steps=self._zeros((slots, *geometry.window_steps_shape), SSM_DTYPE),
        )
        # [slots, d]: the last position's hidden state, from which the next draft starts.
        self.draft_hidden = self._zeros((slots, geometry.draft_hidden_size), geometry.dtype)
        self._by_kind = {
            StateKind.STATE_KIND_ATTENTION_KV: self.tensors.kv,
            StateKind.STATE_KIND_MAMBA_CONV: self.tensors.conv,
            StateKind.STATE_KIND_MAMBA_SSM: self.tensors.ssm,
            StateKind.STATE_KIND_DRAFT_KV: self.tensors.draft_kv,
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

    def addresses(self, region: Region) -> NDArray[np.uint64]:
        """Where each part of the region begins.

        Raises:
            ValueError: a part is outside the tensor of its kind.
        """
        tensor = self._tensor(region)
        offsets = np.array(region.parts, dtype=np.uint64) * np.uint64(region.part_bytes)
        return offsets + np.uint64(tensor.data_ptr())

    def contents(self, region: Region) -> Iterator[memoryview]:
        """The bytes of the region in order; neighbouring parts come as one view.

        On CPU these are views of the live memory, on a GPU it is one copy.
        """
        rows = self._tensor(region).flatten(1).view(torch.uint8)
        if rows.is_cuda:
            yield rows[list(region.parts)].cpu().numpy().data
            return
        live = rows.numpy()
        for first, count in _runs(region.parts):
            yield live[first : first + count].data

    def clear_tail(self, block: int, used_tokens: int) -> None:
        """Zero the places of a block after its first `used_tokens` tokens.

        A block travels whole; without this, what another request once left in it would too.
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

    def _tensor(self, region: Region) -> torch.Tensor:
        tensor = self._by_kind[region.kind]
        for part in region.parts:
            if not 0 <= part < tensor.shape[0]:
                raise ValueError(
                    f"{StateKind.Name(region.kind)}: part {part} is outside the "
                    f"{tensor.shape[0]} parts of this store"
                )
        return tensor

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def _runs(parts: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Split part numbers into (first, count) runs of consecutive ones, keeping their order."""
    first, count = -1, 0
    for part in parts:
        if count and part == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = part, 1
    if count:
        yield first, count
