"""A check split over the workers of a Ray cluster: `pip install "doublecheck-attention[ray]"`.

import doublecheck.ray
merged = doublecheck.ray.check(make_kernel, shards=16, resources={"num_gpus": 1}, arrays="torch", device="cuda")
print(merged)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import ray

from ._check import check as check_here
from ._report import Merged

# How often the share of a worker that was lost is asked again.
ATTEMPTS_AFTER_LOSS = 3


def share(factory: Callable[[], Any], shard: tuple[int, int], options: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Checks one share: its report as JSON, and the files of its counterexamples."""
    report = check_here(factory(), **{**options, "shard": shard, "progress": False})
    return json.dumps(report.to_dict()), report.files()


def check(
    factory: Callable[[], Any], *, shards: int, resources: dict[str, Any] | None = None, **options: Any
) -> Merged:
    """Checks what `factory()` makes on each worker, in so many shares of the same questions, each asked once.

    `resources` are options of a Ray task: num_cpus, num_gpus, resources and others. `options` are those of
    `doublecheck.check`. The share of a worker that is lost is asked again elsewhere, up to three times. Counterexamples
    come back with the reports: `merged.save(folder)`.

    Errors: ValueError as from `doublecheck.check`; those of Ray where a share is lost for good.
    """
    task = ray.remote(share).options(**{"max_retries": ATTEMPTS_AFTER_LOSS, **(resources or {})})
    numbers = range(1, shards + 1)
    results = ray.get([task.remote(factory, (number, shards), options) for number in numbers])
    reports = [(f"share {number}", report) for number, (report, _) in zip(numbers, results, strict=True)]
    files = {
        f"share-{number}/{name}": content
        for number, (_, of) in zip(numbers, results, strict=True)
        for name, content in of.items()
    }
    return Merged(reports, files)
