"""Times of exchanges between ranks: latency and bandwidth (the alpha-beta model of Hockney).

Volumes are those of NCCL's documentation (`all_reduce` 2 (n-1)/n, `all_gather` and
`reduce_scatter` (n-1)/n of the buffer on every rank's link). Latencies count exchanges: over an
NVLink switch all ranks reach each other directly, so an all-to-all or all-gather takes one exchange
and an all-reduce either one (every rank sends all it has to all others) or two (reduce-scatter,
then all-gather), whichever is quicker, as FlashInfer's `trtllm_mnnvl_allreduce` chooses by size.
Groups larger than a scale-up domain send the bytes that leave it over the network, at the same time
as the others go over NVLink.
"""

from __future__ import annotations

import numpy as np

from workers.perf.arrays import Floats, Integers
from workers.perf.hardware import HardwareSpec


class Links:
    """The links of one kind of device, with the share of their bandwidth that is reached."""

    def __init__(self, hardware: HardwareSpec, share: float) -> None:
        self.up_bytes_per_s = hardware.scale_up_bytes_per_s * share
        self.up_latency_s = hardware.scale_up_latency_s
        self.out_bytes_per_s = hardware.scale_out_bytes_per_s * share
        self.out_latency_s = hardware.scale_out_latency_s
        self.domain = hardware.domain

    def all_reduce_s(self, size_bytes: Floats, ranks: Integers) -> Floats:
        """Sum a buffer of `size_bytes` that every one of `ranks` ranks has."""
        wide = ranks > self.domain
        latency_s = np.where(wide, self.out_latency_s, self.up_latency_s)
        bandwidth = np.where(wide, self.out_bytes_per_s, self.up_bytes_per_s)
        others = ranks - 1
        once_s = latency_s + size_bytes * others / bandwidth
        twice_s = 2 * latency_s + 2 * size_bytes * others / (ranks * bandwidth)
        return np.where(others > 0, np.minimum(once_s, twice_s), 0.0)

    def all_gather_s(self, size_bytes: Floats, ranks: Integers) -> Floats:
        """Bring a buffer of `size_bytes`, of which each rank has a part, to all; also the
        reduce-scatter of one."""
        wide = ranks > self.domain
        latency_s = np.where(wide, self.out_latency_s, self.up_latency_s)
        bandwidth = np.where(wide, self.out_bytes_per_s, self.up_bytes_per_s)
        time_s = latency_s + size_bytes * (ranks - 1) / (ranks * bandwidth)
        return np.where(ranks > 1, time_s, 0.0)

    def all_to_all_s(self, sent_bytes: Floats, ranks: Integers) -> Floats:
        """Every rank sends `sent_bytes`, evenly over all `ranks` ranks, itself among them."""
        near = np.minimum(ranks, self.domain)
        near_s = self.up_latency_s + sent_bytes * (near - 1) / (ranks * self.up_bytes_per_s)
        far_s = self.out_latency_s + sent_bytes * (ranks - near) / (ranks * self.out_bytes_per_s)
        time_s = np.where(ranks > self.domain, np.maximum(near_s, far_s), near_s)
        return np.where(ranks > 1, time_s, 0.0)

    def send_s(self, size_bytes: Floats, ranks: Integers) -> Floats:
        """From one pipeline stage to the next, within an instance of `ranks` devices."""
        wide = ranks > self.domain
        latency_s = np.where(wide, self.out_latency_s, self.up_latency_s)
        return latency_s + size_bytes / np.where(wide, self.out_bytes_per_s, self.up_bytes_per_s)


def overlapped_s(work_s: Floats, latency_s: float, transfer_s: Floats, parts: Floats) -> Floats:
    """Two stages over a batch cut into parts: while one part is sent, the next is computed.

    Time = m max(w, c) + min(w, c) for m equal parts, the two-stage pipeline of HOP-B (Helix, arXiv
    2507.07120, section 2.1 and figure 3: 8 parts of 2 and 1.2 take 17.2 units instead of 25.6). The
    best number of parts up to `parts` is taken, since every part pays the latency again.
    """
    best = work_s + latency_s + transfer_s
    count = 2.0
    most = float(np.max(parts, initial=1.0))
    while count <= most:
        each = work_s / count
        sent = latency_s + transfer_s / count
        time_s = count * np.maximum(each, sent) + np.minimum(each, sent)
        best = np.where(parts >= count, np.minimum(best, time_s), best)
        count *= 2.0
    return best
