"""Triton kernels for what decides the speed of a decode step on a GPU.

Exists because three parts of a step move far more bytes than their arithmetic needs when they are
written as tensor operations: attention over paged keys (gathers every page, once more for each
query head), the Mamba state of a window (reads and writes the state once per operation), and
experts (one small product per expert). Each kernel reads and writes what it must once; its module
says how many bytes that is, and `python -m workers.kernels.bandwidth` compares that with what the
GPU copies in the same time.

Nothing here is imported without need: Triton comes with CUDA builds of PyTorch and is missing from
the others, so only `dispatch` is imported by the model, and `dispatch` imports a kernel when its
first tensors on a GPU arrive.

What is known without a GPU: the kernels give what float64 gives under Triton's interpreter, and
they compile for compute capability 9.0 without spilling registers at the shapes of Nemotron 3
Super. How fast they are is only known where the command above ran. Tile sizes and the number of
keys of a split are chosen by reasoning, not by measurement. A decode step is launched kernel by
kernel; it is not captured in a CUDA graph, for which block tables, expert tiles and the number of
accepted drafts would have to live in buffers that stay where they are.
"""
