"""A top-k kernel in numpy, checked alone: it takes scores and gives the selected keys (SPEC 2.9)."""

import pathlib
import sys

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck


def select(call):
    order = np.argsort(-call.scores, axis=-1, kind="stable")[..., : call.heavy_size]
    chosen = np.zeros(call.scores.shape, bool)
    np.put_along_axis(chosen, order, True, -1)
    return chosen & (call.scores > -np.inf)


if __name__ == "__main__":
    doublecheck.serve(select, name="numpy top-k", takes="scores", gives=["mask"])
