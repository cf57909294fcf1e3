"""Trains, quantizes and checks the agent's demo models.

    recipe.py train   trains from the packages' data with fixed seeds and rewrites the bundles
    recipe.py check   verifies the committed bundles without training

Both print accuracy on the held-back split and fail when quantization costs more than one point.
"""

import os
import sys
from pathlib import Path

# One thread: sums in one order, so that the same versions give the same weights.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import digits  # noqa: E402
import motion  # noqa: E402

MODELS = Path(__file__).resolve().parent.parent


def main():
    command = sys.argv[1:]
    if command not in (["train"], ["check"]):
        raise SystemExit(__doc__)
    for module, name in ((motion, "motion-anomaly"), (digits, "meter-digits")):
        if command == ["train"]:
            module.train(MODELS / name)
        module.check(MODELS / name)


if __name__ == "__main__":
    main()
