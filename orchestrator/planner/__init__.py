"""Which layouts and how many workers of each kind, before anyone rents a GPU.

Pure: a question in, a plan out. Files and pictures are at the edges.
"""
