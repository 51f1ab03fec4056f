"""Checks in shares: put together they asked what one check asks, on a Ray cluster that loses a worker as well."""

import json
import os
import pathlib
import signal
from typing import Any

import doublecheck
import pytest
from kernels import DECLARED, misses_a_channel, right

OPTIONS: dict[str, Any] = {**DECLARED, "cases": 90, "goldens": False, "shrink_seconds": 2, "conditions": False}
COUNTED = ("sequences", "large", "calls")


def test_shares_are_the_whole():
    whole = doublecheck.check(right, **OPTIONS).to_dict()
    reports = [doublecheck.check(right, shard=(number, 3), **OPTIONS) for number in (1, 2, 3)]
    merged = doublecheck.merge(reports)
    assert merged.conforms and "asked: " in str(merged), str(merged)
    assert {name: merged.to_dict()[name] for name in COUNTED} == {name: whole[name] for name in COUNTED}


def test_files_are_merged_and_a_missing_share_is_told(tmp_path):
    path = tmp_path / "first.json"
    path.write_text(json.dumps(doublecheck.check(misses_a_channel, shard=(1, 2), **OPTIONS).to_dict()))
    merged = doublecheck.merge([path])
    assert not merged.conforms and merged.to_dict()["findings"] and "2/2" in json.dumps(merged.to_dict()["bad_inputs"])


def test_shares_that_cannot_be_are_errors():
    with pytest.raises(ValueError, match=r"shard: found \(3, 2\), expected"):
        doublecheck.check(right, shard=(3, 2), **OPTIONS)
    report = doublecheck.check(right, shard=(1, 2), **OPTIONS)
    with pytest.raises(ValueError, match="report 2"):
        doublecheck.merge([report, report])


class DiesOnce:
    """A right kernel; the first process that asks it 20 times is killed in the middle of its share."""

    def __init__(self, killed):
        self.killed, self.asked = pathlib.Path(killed), 0

    def mask(self, call):
        self.asked += 1
        if self.asked == 20 and not self.killed.exists():
            self.killed.write_text("once")
            os.kill(os.getpid(), signal.SIGKILL)
        return right(call)


def test_a_lost_worker_of_ray_is_made_up_for(tmp_path):
    ray = pytest.importorskip("ray", reason="no ray here: checks on a cluster are not tested")
    import doublecheck.ray

    tests = str(pathlib.Path(__file__).parent)
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": tests}})
    try:
        whole = doublecheck.check(right, **OPTIONS).to_dict()
        killed = tmp_path / "killed"
        merged = doublecheck.ray.check(lambda: DiesOnce(killed), shards=4, **OPTIONS)
        assert killed.exists() and merged.conforms, str(merged)
        assert {name: merged.to_dict()[name] for name in COUNTED} == {name: whole[name] for name in COUNTED}
        faulty = doublecheck.ray.check(lambda: misses_a_channel, shards=2, **OPTIONS)
        assert not faulty.conforms
        assert all(not doublecheck.load(path).ask(misses_a_channel).conforms for path in faulty.save(tmp_path))
    finally:
        ray.shutdown()
