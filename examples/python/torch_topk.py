"""torch.topk, checked alone: it takes scores and gives the selected keys (SPEC 2.9)."""

import argparse
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck

import torch

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--promises", default="repeatable", help="separated by commas")
    arguments = parser.parse_args()

    def select(call):
        scores = torch.from_numpy(call.scores).to(DTYPES[call.dtype]).to(arguments.device)
        best = scores.topk(min(call.heavy_size, scores.shape[-1]), dim=-1)
        # A score of -inf is no candidate, which only its caller can know.
        return {"selected": torch.where(best.values > -torch.inf, best.indices, -1)}

    promises = [promise for promise in arguments.promises.split(",") if promise]
    doublecheck.serve(select, name="torch.topk", version=f"{torch.__version__}, {arguments.device}", takes="scores",
                      gives=["selected"], promises=promises)  # fmt: skip


if __name__ == "__main__":
    main()
