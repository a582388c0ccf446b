"""Which failures of an attempt are worth another one, and whose fault they are.

A request that is at fault itself would fail everywhere; a worker, a transfer or a lease that failed
says nothing of the next. Every answer can go on from the tokens made so far, so a retry costs
reading them again and nothing else.
"""

from __future__ import annotations

from protos.tandem.v1 import common_pb2
from router.core.reasons import Reason

# The worker did what it had to; another one, or the same one later, will take the request.
REFUSALS = frozenset({common_pb2.REASON_OUT_OF_CAPACITY, common_pb2.REASON_DRAINING})
# So did one that let a request go as it was told, when nobody wanted the state any more.
BLAMELESS = REFUSALS | {common_pb2.REASON_MIGRATED}

_HAND_OFF = frozenset(
    {
        common_pb2.REASON_TRANSFER_FAILED,
        common_pb2.REASON_MANIFEST_MISMATCH,
        common_pb2.REASON_CHECKSUM_MISMATCH,
        common_pb2.REASON_LEASE_EXPIRED,
    }
)
_RETRIED = (
    BLAMELESS
    | _HAND_OFF
    | {
        common_pb2.REASON_UNSPECIFIED,
        common_pb2.REASON_WORKER_LOST,
        common_pb2.REASON_ENGINE_ERROR,
        common_pb2.REASON_INTERNAL,
        # On their own account: a request that we cancelled does not count any more.
        common_pb2.REASON_CANCELLED,
        common_pb2.REASON_CLIENT_GONE,
        common_pb2.REASON_DEADLINE_EXCEEDED,
    }
)


def is_worth_a_retry(reason: Reason) -> bool:
    """Whether another attempt may end otherwise."""
    return reason in _RETRIED


def blames_both(reason: Reason) -> bool:
    """Whether either end of a hand-off may be at fault."""
    return reason in _HAND_OFF
