"""What each reason means for a request: did it end well, did somebody want it, or did it fail.

One place, because the state machine, the reports and the front ends must agree on it.
"""

from __future__ import annotations

from typing import TypeAlias

from protos.tandem.v1 import common_pb2

Reason: TypeAlias = common_pb2.ReasonCode.ValueType

WELL = frozenset(
    {common_pb2.REASON_STOP_TOKEN, common_pb2.REASON_STOP_STRING, common_pb2.REASON_LENGTH}
)
WANTED = frozenset(
    {
        common_pb2.REASON_CANCELLED,
        common_pb2.REASON_CLIENT_GONE,
        common_pb2.REASON_DEADLINE_EXCEEDED,
    }
)


def reason_name(reason: Reason) -> str:
    """REASON_LENGTH and so on; a number that this version does not know is shown as it is."""
    try:
        return common_pb2.ReasonCode.Name(reason)
    except ValueError:
        return f"REASON_{reason}"
