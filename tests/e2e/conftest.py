"""One cluster for all end-to-end tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.clusters import Cluster, running_cluster

TINY = Path(__file__).parents[2] / "workers" / "checkpoints" / "tandem-tiny"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The default cluster: one prefill worker, one decode worker, the shipped model."""
    folder = tmp_path_factory.mktemp("cluster")
    with running_cluster(folder, "--trace-file", str(folder / "trace.jsonl")) as cluster:
        yield cluster
