"""From the files of a published checkpoint to the weights that one rank needs.

Exists apart from the model's maths because published releases are quantised, sharded over files
and named in two schemes, and none of that is the model's business. `Checkpoint` is the way in;
`inventory` says what a release must hold, `shard` which part of it a rank reads.
"""

from __future__ import annotations

from workers.checkpoint.loading import Checkpoint, Progress
from workers.checkpoint.model import load_model, load_rank
from workers.checkpoint.shard import RankShard

__all__ = ["Checkpoint", "Progress", "RankShard", "load_model", "load_rank"]
