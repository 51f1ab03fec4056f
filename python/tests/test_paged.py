"""Keys and values in pages: a kernel that follows the page table conforms, others do not."""

from typing import Any

import doublecheck
import numpy as np
import pytest
from kernels import DECLARED, right

OPTIONS: dict[str, Any] = {
    **DECLARED,
    "layout": "paged",
    "page_size": 4,
    "cases": 80,
    "goldens": False,
    "shrink_seconds": 2,
}


def gathered(call, table):
    """As `right`, by the keys of the pages of a table."""
    pages = call.k_pages[table]
    k = pages.reshape(len(pages), -1, *pages.shape[3:]).swapaxes(1, 2)
    call.k = np.nan_to_num(k[:, :, : call.lengths.max()], nan=0.0)
    return right(call)


def test_a_kernel_that_follows_the_table_conforms():
    seen = set()

    def kernel(call):
        assert call.k is None and call.v is None and call.page_size == 4
        assert call.v_pages.shape[:3] == call.k_pages.shape[:3]
        held = np.isnan(call.k_pages).any((1, 2, 3)) | (call.k_pages == 3e4).any((1, 2, 3))
        seen.add((len(call.k_pages) > call.page_table.size, bool(held.any())))
        return gathered(call, call.page_table)

    report = doublecheck.check(kernel, **OPTIONS)
    assert report.conforms, str(report)
    assert seen == {(True, True)}


def in_order(call):
    return gathered(call, np.arange(call.page_table.size).reshape(call.page_table.shape))


def of_first_entry(call):
    return gathered(call, call.page_table[:1].repeat(len(call.page_table), 0))


def last_page_twice(call):
    table = call.page_table.copy()
    table[:, -2:] = table[:, -1:]
    return gathered(call, table)


@pytest.mark.parametrize("kernel", [in_order, of_first_entry, last_page_twice])
def test_wrong_pages_are_found(kernel, tmp_path):
    report = doublecheck.check(kernel, **OPTIONS)
    assert not report.conforms, str(report)
    finding = report.findings[0]
    ways: dict[str, Any] = {"layout": "paged", "page_size": 4}
    assert not finding.case.ask(kernel, **ways).conforms
    assert finding.case.ask(lambda call: gathered(call, call.page_table), **ways).conforms
    source = finding.as_test(tmp_path / "finding.safetensors")
    assert "layout='paged', page_size=4" in source, source


def test_what_cannot_be_paged_is_an_error():
    with pytest.raises(ValueError, match="layout: found 'pages' with"):
        doublecheck.check(right, **{**OPTIONS, "layout": "pages"})
    with pytest.raises(ValueError, match="layout: found 'paged' with hostile=True"):
        doublecheck.check(right, hostile=True, **OPTIONS)
    with pytest.raises(ValueError, match="isolate: found layout='paged'"):
        doublecheck.check(right, isolate=True, **OPTIONS)
