"""Strategies for Hypothesis: cases inside a domain, which a right kernel conforms on and a wrong one does not."""

from typing import Any

import hypothesis
import pytest
from doublecheck.strategies import calls
from hypothesis import given, settings
from kernels import misses_a_channel, right

DOMAIN: dict[str, Any] = {
    "head_dim": [4, 6],
    "label_channels": [2, 3],
    "keys": {"from": 3, "to": 9},
    "queries": [1],
    "group": [2],
    "heavy_size": [2],
    "label_bits": [16],
    "value_dim": "d",
    "dtype": ["f32"],
}
SETTINGS = settings(max_examples=60, database=None, deadline=None)


@SETTINGS
@given(calls(DOMAIN))
def test_a_right_kernel_conforms_inside_the_domain(case):
    (call,) = case.calls
    (_, h, m, d), (_, hk, n, _) = call.q.shape, call.k.shape
    assert h == 2 * hk and m == 1 and 3 <= n <= 9 and call.v.shape[3] == d
    assert d // call.instance.group_factor in (2, 3) and call.dtype == "f32"
    verdict = case.judge(mask=right(call))
    assert verdict, str(verdict)


@SETTINGS
@given(calls())
def test_whatever_is_drawn_is_answered_by_the_reference(case):
    assert case.judge(case.reference())


def test_a_wrong_kernel_is_found_and_shrunk():
    found = hypothesis.find(
        calls(DOMAIN),
        lambda case: not case.judge(mask=misses_a_channel(case.calls[0])),
        settings=settings(max_examples=500, database=None, deadline=None),
    )
    (call,) = found.calls
    assert call.k.shape[2] == 3 and call.q.shape[:2] == (1, 2)


def test_a_domain_that_cannot_be_is_an_error():
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"keyz": [1]}, "domain: found \\['keyz'\\]"),
        ({"queries": [5], "keys": [4]}, "no queries and keys that fit"),
        ({"keys": {"from": 9, "to": 3}}, "domain.keys"),
        ({"keys": {"above": 9}}, "expected from, to and multiple_of"),
    ]
    for domain, message in wrong:
        with pytest.raises(ValueError, match=message):
            calls(domain)
