"""Keys and values in pages, as serving engines hold them: `check(..., layout="paged")`.

A call has `k_pages` [pages, page size, hk, d] and `v_pages` [pages, page size, hk, dv] in place of k and v,
`page_table` [b, pages of an entry] with the number of each page, and `lengths` [b], in int32. Pages lie in a random
order, some belong to no entry, and what holds no key is NaN, or huge in about half of the calls.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ._serve import to_numpy

PAGE_SIZE = 16
# So many pages are no entry's.
SPARE_PAGES = 3


class Paged:
    """A function of a call with pages, asked with calls that have k and v; in numpy or torch."""

    def __init__(self, method: Callable[[Any], Any], torch: Any, page_size: int):
        self.method, self.torch, self.page_size = method, torch, page_size

    def __call__(self, call: Any) -> Any:
        """The answer to a call."""
        b, _, n, _ = call.k.shape
        # By the question itself, so that whoever asks it again gives the same.
        question = zlib.crc32(to_numpy(call.q)[1].tobytes())
        empty = np.nan if question & 1 else 3e4
        of_entry = -(-n // self.page_size)
        total = b * of_entry + SPARE_PAGES
        table = np.random.default_rng(question).permutation(total)[: b * of_entry].reshape(b, of_entry).astype(np.int32)
        if hasattr(call, "additive"):
            additive = call.additive()
            call.additive = lambda: additive
        lengths = np.full(b, n, np.int32) if call.lengths is None else call.lengths
        call.k_pages, call.v_pages = (self.pages(x, table, total, empty) for x in (call.k, call.v))
        call.page_table, call.lengths = self.given(table, call.q), self.given(lengths, call.q)
        call.page_size, call.k, call.v = self.page_size, None, None
        return self.method(call)

    def given(self, array: Any, like: Any) -> Any:
        """An array of numpy as the kernel is given such."""
        return self.torch.as_tensor(array, device=like.device) if self.torch is not None else array

    def pages(self, x: Any, table: np.ndarray, total: int, empty: float) -> Any:
        """All pages [total, page size, hk, .] of keys or values [b, hk, n, .]."""
        (b, hk, n, width), size = x.shape, self.page_size
        of = np.arange(n)
        slots = table[:, of // size].astype(np.int64) * size + of % size
        shape = (total * size, hk, width)
        if self.torch is not None:
            pool = self.torch.full(shape, empty, dtype=x.dtype, device=x.device)
        else:
            pool = np.full(shape, empty, x.dtype)
        pool[self.given(slots.reshape(-1), x)] = x.swapaxes(1, 2).reshape(b * n, hk, width)
        return pool.reshape(total, size, hk, width)
