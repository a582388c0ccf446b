"""The router's configuration survives its trip to the process and refuses what is not one."""

from __future__ import annotations

import pytest

from router.config import PriorityClass, RouterConfig
from workers.registry import WorkerRecord
from workers.telemetry import TraceConfig

RECORD = WorkerRecord("d", "decode", "native", "h:1", "m", "f", 0, 10, 20, "tp=1", 1, 2.0)


def test_a_configuration_is_one_line_and_comes_back_as_it_was() -> None:
    config = RouterConfig(
        model_path="p",
        model_name="m",
        workers=(RECORD,),
        classes=(PriorityClass("a", 1, 2, 3),),
        trace=TraceConfig(trace_file="t"),
    )
    text = config.to_json()
    assert "\n" not in text
    assert RouterConfig.from_json(text) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "JSON"),
        ("{}", "model_path"),
        ('{"model_path": "p", "model_name": "m", "prot": 1}', "prot"),
        ('{"model_path": "p", "model_name": "m", "queue_limit": "many"}', "queue_limit"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RouterConfig.from_json(text)
