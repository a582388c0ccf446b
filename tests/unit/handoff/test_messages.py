"""What rank 0 and the ranks tell each other survives the way as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.handoff import messages
from workers.handoff.messages import Command, Event, Open, decode, encode

_NUMBERS = st.integers(0, 2**64 - 1)
_MESSAGES: st.SearchStrategy[Command | Event] = st.one_of(
    [
        st.builds(
            kind,
            **{
                name: {
                    "int": _NUMBERS,
                    "float": st.floats(0, 1e9),
                    "str": st.text(),
                    "bytes": st.binary(),
                    "tuple[int, ...]": st.lists(_NUMBERS).map(tuple),
                    "ReasonCode.ValueType": st.integers(0, 60),
                }[str(annotation)]
                for name, annotation in kind.__annotations__.items()
            },
        )
        for kind in messages._KINDS.values()
    ]
)


@given(_MESSAGES)
def test_any_message_is_what_it_was(message: Command | Event) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("data", [b"", b"{}", b'["Nothing"]', b'["Open", 1]', b"\xff", b"[[]]"])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


def test_a_message_is_small() -> None:
    assert len(encode(Open(1, bytes(4096), tuple(range(2048)), 3))) < 20_000
