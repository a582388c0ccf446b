"""Counts and distributions of one router, and their text for Prometheus.

Written here because it is little: a client library would bring its own registry, process-wide
state and threads, and takes several microseconds for what is done for every message.
Format: https://prometheus.io/docs/instrumenting/exposition_formats (text, version 0.0.4).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From 50 microseconds to a minute, in steps of about 1.5: fine enough to read a p99 from.
TIME_BUCKETS_S = tuple(5e-5 * 1.5**n for n in range(36))


class Counter:
    """Counts by the value of one label, or without one."""

    def __init__(self, name: str, text: str, label: str = "") -> None:
        self.name = name
        self._text = text
        self._label = label
        self._counts: dict[str, float] = {} if label else {"": 0}

    def add(self, amount: float = 1, value: str = "") -> None:
        """Count `amount` more under the label's `value`."""
        self._counts[value] = self._counts.get(value, 0) + amount

    def lines(self) -> Iterable[str]:
        yield from _head(self.name, self._text, "counter")
        for value, count in sorted(self._counts.items()):
            label = f'{{{self._label}="{_escaped(value)}"}}' if self._label else ""
            yield (
                f"{self.name}{label} {count:g}"
                if count < 1e6
                else (f"{self.name}{label} {count:.0f}")
            )


class Histogram:
    """How often a duration in seconds fell where."""

    def __init__(self, name: str, text: str, bounds_s: Sequence[float] = TIME_BUCKETS_S) -> None:
        self.name = name
        self._text = text
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, value_s: float) -> None:
        """Take one duration in."""
        self._counts[bisect_left(self._bounds_s, value_s)] += 1
        self._sum_s += value_s

    def lines(self) -> Iterable[str]:
        yield from _head(self.name, self._text, "histogram")
        total = 0
        for bound_s, count in zip(self._bounds_s, self._counts, strict=False):
            total += count
            yield f'{self.name}_bucket{{le="{bound_s:.6g}"}} {total}'
        total += self._counts[-1]
        yield f'{self.name}_bucket{{le="+Inf"}} {total}'
        yield f"{self.name}_sum {self._sum_s:.9g}"
        yield f"{self.name}_count {total}"


def gauge_lines(
    name: str, text: str, values: Mapping[tuple[tuple[str, str], ...], float]
) -> Iterable[str]:
    """A quantity as it is now; `values` by labels, each a tuple of names and values."""
    return _value_lines(name, text, "gauge", values)


def counter_lines(
    name: str, text: str, values: Mapping[tuple[tuple[str, str], ...], float]
) -> Iterable[str]:
    """A quantity that only grows, counted elsewhere; `values` as of `gauge_lines`."""
    return _value_lines(name, text, "counter", values)


def labelled(label: str, texts: Mapping[str, str]) -> str:
    """Texts of the same quantities as one, each sample with its text's key under `label`."""
    families: dict[str, list[str]] = {}
    for value, text in texts.items():
        name, told = "", False
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                told = name in families
                families.setdefault(name, [])
            if not line.startswith("#"):
                sample, _, number = line.rpartition(" ")
                own = f'{label}="{_escaped(value)}"'
                head, brace, rest = sample.partition("{")
                families[name].append(f"{head}{{{own}{',' + rest if brace else '}'} {number}")
            elif not told:
                families[name].append(line)
    return "\n".join(line for lines in families.values() for line in lines) + "\n"


def _value_lines(
    name: str, text: str, kind: str, values: Mapping[tuple[tuple[str, str], ...], float]
) -> Iterable[str]:
    yield from _head(name, text, kind)
    for labels, value in values.items():
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
        yield f"{name}{{{inside}}} {value:.10g}" if inside else f"{name} {value:.10g}"


def _head(name: str, text: str, kind: str) -> Iterable[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
