"""How long work takes and how much memory it needs: pure arithmetic, no torch, no I/O.

Everything that plans, scales or simulates asks here, so that all of them believe the same figures.
Functions take arrays and answer arrays: one call evaluates every candidate layout at once.
"""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
