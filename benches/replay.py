"""Gives the selection and the output of a folder to every question, to show what asking costs.

replay.py FOLDER pipe      # or shared
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
import doublecheck
import numpy as np

FOLDER, WAY = pathlib.Path(sys.argv[1]), sys.argv[2]
SELECTED = np.fromfile(FOLDER / "selected", "<i4")
OUTPUT = np.fromfile(FOLDER / "output", "<f4")


def answer(call):
    b, h, m, _ = call.q.shape
    return {"selected": SELECTED.reshape(b, h, m, -1), "output": OUTPUT.reshape(b, h, m, -1)}


doublecheck.serve(answer, name="replay", shared_memory=WAY == "shared")
