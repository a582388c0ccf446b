"""Fused kernels for decode steps and prompts on a CPU, in C++, compiled where they run.

Exists because a step of a small model is hundreds of operations of a few microseconds each, and
every one reads and writes memory again: here a Mamba mixer between its projections is one call, and
so is attention over pages. The functions stand for those of `workers.model` of the same name and
take what these take. They are used where `library.load` finds a compiler, and never with gradients.
"""
