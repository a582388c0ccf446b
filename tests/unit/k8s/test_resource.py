"""The custom resource says exactly what ClusterSpec says, in the API server's language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s.crds.rules import RULES
from k8s.generate import COPIES, rendered
from k8s.operator.core import reconcile
from k8s.operator.observed import Observed
from orchestrator.spec import ClusterSpec, SpecError, validated
from tests.unit.k8s.admission import admit, broken_rules, is_structural, resource_schema
from tests.unit.k8s.schemas import problems_of
from tests.unit.k8s.world import IMAGE, START

EXAMPLES = sorted((Path(__file__).parents[3] / "k8s" / "examples").glob("*.yaml"))


def test_the_committed_copies_are_what_the_spec_generates() -> None:
    assert [path for path in COPIES if path.read_text(encoding="utf-8") != rendered()] == []


def test_the_definition_is_valid_and_structural() -> None:
    assert problems_of(yaml.safe_load(rendered())) == []
    assert is_structural(resource_schema()) == []


def _sections(
    schema: Mapping[str, object], at: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield at, schema
    for name, field in cast(
        Mapping[str, Mapping[str, object]], schema.get("properties", {})
    ).items():
        yield from _sections(field, f"{at}.{name}")


def test_the_default_of_each_section_meets_its_rules_as_it_stands() -> None:
    """The server refuses a definition otherwise: it checks defaults before it fills them in."""
    checked = 0
    for at, schema in _sections(resource_schema()):
        if "default" in schema and "properties" in schema:
            checked += bool(schema.get("x-kubernetes-validations"))
            assert broken_rules(schema, schema["default"]) == [], at
    assert checked >= 5


def test_what_a_rule_goes_through_has_an_end() -> None:
    """The server refuses a definition whose rules could cost too much."""
    for at, schema in _sections(resource_schema()):
        if not schema.get("x-kubernetes-validations") or "properties" in schema:
            continue
        if schema.get("type") == "array":
            assert "maxItems" in schema, at
            below = schema["items"]
        elif "additionalProperties" in schema:
            assert "maxProperties" in schema, at
            below = schema["additionalProperties"]
        else:
            continue
        if below["type"] == "string":
            assert "maxLength" in below, at


def test_an_empty_spec_gets_the_defaults_of_tandem_up() -> None:
    resource, problems = admit({})
    assert problems == []
    spec = resource["spec"]
    assert isinstance(spec, dict)
    assert validated(spec) == ClusterSpec()


def test_a_range_without_max_means_that_many_workers() -> None:
    resource, problems = admit({"decode": {"workers": {"min": 3}}})
    assert problems == []
    spec = resource["spec"]
    assert isinstance(spec, dict)
    assert validated(spec).decode.workers.max == 3


_sizes = st.integers(-1, 4)
_layouts = st.fixed_dictionaries(
    {}, optional={"kvp": _sizes, "tpa": _sizes, "ep": _sizes, "tpf": _sizes}
)
_workers = st.fixed_dictionaries({}, optional={"min": _sizes, "max": _sizes})
_pods = st.fixed_dictionaries(
    {},
    optional={
        "pods_per_worker": st.sampled_from([0, 1, 2, 3, 64, 65]),
        "memory": st.sampled_from(["1Gi", "0Gi", "1G", "16Mi", ""]),
        "devices": st.dictionaries(st.just("rdma/hca"), _sizes, max_size=1),
        "tolerations": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "operator": st.sampled_from(["Exists", "Equal", "Other"]),
                    "value": st.sampled_from(["", "x"]),
                },
            ),
            max_size=2,
        ),
    },
)
_pool = {
    "engine": st.sampled_from(["native", "vllm", "vllm", "other"]),
    "vllm": st.fixed_dictionaries(
        {},
        optional={
            "python": st.just("/opt/vllm/bin/python"),
            "args": st.lists(
                st.sampled_from(
                    [
                        "--max-model-len=1024",
                        "--model=x",
                        "--enforce-eager",
                        "-tp",
                        "--max_num_seqs=2",
                    ]
                ),
                max_size=2,
            ),
        },
    ),
    "workers": _workers,
    "resources": st.fixed_dictionaries({}, optional={"cpu": _sizes, "gpu": st.integers(-1, 8)}),
}
_addresses = st.sampled_from(
    ["127.0.0.1:50051", "0.0.0.0:8000", "[::]:9000", "x:65535", "x:65536", "x", ":80", "x:-1"]
)
_targets = st.fixed_dictionaries(
    {"ttft_ms": st.sampled_from([0, 1, 2.5]), "itl_ms": st.just(4)},
    optional={"weight": st.sampled_from([0, 0.5])},
)
_keys = st.sampled_from(["sha256:" + "0" * 64, "short"])
_specs = st.fixed_dictionaries(
    {},
    optional={
        "model": st.fixed_dictionaries(
            {}, optional={"path": st.sampled_from(["", "/m"]), "dtype": st.just("float64")}
        ),
        "store": st.sampled_from(["embedded", "redis://h:1/0", "unix:///s", "http://h", ""]),
        "classes": st.dictionaries(st.sampled_from(["a", "fast_1", "A", "", "9"]), _targets),
        "prefill": st.fixed_dictionaries(
            {},
            optional={
                **_pool,
                "layout": st.fixed_dictionaries({}, optional={"tp": st.integers(0, 4)}),
            },
        ),
        "decode": st.fixed_dictionaries(
            {},
            optional={
                **_pool,
                "layout": _layouts,
                "draft_tokens": st.sampled_from(["auto", "some", 0, 7, 8, -1]),
            },
        ),
        "router": st.fixed_dictionaries({}, optional={"grpc": _addresses, "http": _addresses}),
        "kubernetes": st.fixed_dictionaries({}, optional={"prefill": _pods, "decode": _pods}),
        "tenants": st.dictionaries(
            st.sampled_from(["a", "b", "B"]),
            st.fixed_dictionaries({}, optional={"weight": st.sampled_from([0, 2])}),
        ),
        "security": st.fixed_dictionaries(
            {}, optional={"api_keys": st.dictionaries(st.sampled_from(["a", "b"]), _keys)}
        ),
        "unknown": st.just(1),
    },
)


@settings(max_examples=400, deadline=None)
@given(_specs)
def test_admission_and_the_spec_give_the_same_verdict(spec: Mapping[str, object]) -> None:
    resource, problems = admit(spec)
    own = {rule.message for rule in RULES if rule.kubernetes_only}
    problems = [problem for problem in problems if problem not in own]
    try:
        expected = validated(spec)
    except SpecError:
        assert problems != []
        return
    assert problems == []
    # What the server made of it means the same as what the user wrote.
    filled = resource["spec"]
    assert isinstance(filled, dict)
    assert validated(filled) == expected


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{'.'.join(rule.path)}: {rule.rule}"[:60])
def test_every_rule_refuses_something(rule: object) -> None:
    messages = {problem for spec in _WRONG for problem in admit(spec)[1]}
    messages |= set(admit({}, name="9-starts-with-a-digit")[1])
    assert rule.message in messages  # type: ignore[attr-defined]


_EXISTS = {"operator": "Exists", "value": "x"}
_WRONG: list[dict[str, object]] = [
    {"tenants": {"Alice": {"weight": 2}}},
    {"security": {"api_keys": {"alice": "short"}}},
    {"prefill": {"layout": {"tp": 3}}, "kubernetes": {"prefill": {"pods_per_worker": 2}}},
    {"kubernetes": {"decode": {"pods_per_worker": 2}}},
    {"classes": {"Fast": {"ttft_ms": 1, "itl_ms": 1}}},
    {"prefill": {"workers": {"min": 2, "max": 1}}},
    {"decode": {"workers": {"min": 2, "max": 1}}},
    {"decode": {"workers": {"min": 0}}},
    {"decode": {"layout": {"kvp": 2}}},
    {"decode": {"draft_tokens": 8}},
    {"decode": {"engine": "vllm"}},
    {
        "prefill": {"engine": "vllm"},
        "decode": {"engine": "vllm", "layout": {"kvp": 2, "tpa": 2, "tpf": 4}},
    },
    {
        "prefill": {"engine": "vllm", "layout": {"tp": 2}},
        "decode": {"engine": "vllm", "layout": {"tpa": 3, "tpf": 3}},
    },
    {"prefill": {"vllm": {"args": ["--model=x"]}}},
    {"decode": {"vllm": {"args": ["--max_num_seqs", "2"]}}},
    {"router": {"grpc": "127.0.0.1:1", "http": "127.0.0.1:1"}},
    {"router": {"grpc": "127.0.0.1:0"}},
    {"router": {"grpc": "a:8000", "http": "b:8000"}},
    {"kubernetes": {"prefill": {"tolerations": [_EXISTS]}}},
    {"kubernetes": {"decode": {"tolerations": [_EXISTS]}}},
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_admitted(path: Path) -> None:
    for resource in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        assert admit(resource["spec"], resource["metadata"]["name"])[1] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_served_by_what_is_built(path: Path) -> None:
    for resource in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        resource["metadata"] |= {"namespace": "default", "uid": "u", "generation": 1}
        outcome = reconcile(resource, Observed(), START, IMAGE)
        statuses = [action.status for action in outcome.actions if hasattr(action, "status")]
        assert [status["phase"] for status in statuses] == ["Progressing"]
