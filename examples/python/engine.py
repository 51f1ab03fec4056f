"""A serving engine in numpy, and the adapter by which `doublecheck check` asks it in sessions.

Keys and values of all requests lie in pages. Each request has a table of them; a fork shares pages, and one that is
shared is copied before it is written. Keys are selected by the masker beside this file.
"""

import pathlib
import sys

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck
import masker


class Engine:
    def __init__(self, layers, pages, page_size, kv_heads, head_dim, value_dim):
        self.layers, self.size, self.tables, self.lengths = layers, page_size, {}, {}
        shape = layers, pages, page_size, kv_heads
        self.k, self.v = np.zeros((*shape, head_dim), np.float32), np.zeros((*shape, value_dim), np.float32)
        self.unused, self.users = list(range(pages)), np.zeros(pages, int)

    def write(self, request, layer, keys, values):
        lengths = self.lengths.setdefault(request, np.zeros(self.layers, int))
        for key, value in zip(keys, values):
            page, slot = self.place(self.tables.setdefault(request, []), lengths[layer])
            self.k[layer, page, slot], self.v[layer, page, slot] = key, value
            lengths[layer] += 1

    def place(self, table, position):
        """Page and slot of a position; a page that is not there yet, or is shared, becomes one of its own."""
        index, slot = divmod(position, self.size)
        if index == len(table) or self.users[table[index]] > 1:
            new = self.unused.pop()
            self.users[new], old = 1, table[index : index + 1]
            self.users[old] -= 1
            self.k[:, [new] * len(old)], self.v[:, [new] * len(old)] = self.k[:, old], self.v[:, old]
            table[index : index + 1] = [new]
        return table[index], slot

    def read(self, request, layer):
        pages, length = self.tables[request], self.lengths[request][layer]
        return [x[layer, pages].reshape(-1, *x.shape[3:])[:length] for x in (self.k, self.v)]

    def share(self, request, new, length):
        self.tables[new] = self.tables[request][: -(-length // self.size)]
        self.users[self.tables[new]] += 1
        self.lengths[new] = np.minimum(self.lengths[request], length)

    def shorten(self, request, length):
        self.lengths[request] = np.minimum(self.lengths[request], length)
        pages, kept = self.tables[request], -(-self.lengths[request].max() // self.size)
        self.users[pages[kept:]] -= 1
        self.unused += [page for page in pages[kept:] if self.users[page] == 0]
        del pages[kept:]


class Adapter:
    mask = staticmethod(masker.mask)  # calls, in which everything is given

    def open(self, opening):
        self.opening, pages = opening, opening.capacity // opening.page_size
        shapes = opening.kv_heads, opening.head_dim, opening.value_dim
        self.engine = Engine(len(opening.layers), pages, opening.page_size, *shapes)

    def append(self, layer, requests, k, v):
        for request, keys, values in doublecheck.parts(requests, k, v):
            self.engine.write(request, self.opening.layers.index(layer), keys, values)

    def attend(self, layer, requests, q):
        def held(request):
            return self.engine.read(request, self.opening.layers.index(layer))

        return doublecheck.by_request(self.mask, self.opening, layer, requests, q, held)

    def fork(self, request, to, length):
        self.engine.share(request, to, length)

    def truncate(self, request, length):
        self.engine.shorten(request, length)

    def free(self, request):
        self.engine.shorten(request, 0)


if __name__ == "__main__":
    doublecheck.serve(Adapter(), name="numpy engine", dtypes=["f32"], heads=["per-head"],
                      lacks=["earlier_maskers", "dense_fallback", "dense_layers", "refusals", "output"])  # fmt: skip
