"""Trains, quantizes and checks the agent's demo models, and makes bundles of other models.

    recipe.py train     trains from the packages' data with fixed seeds and rewrites the bundles
    recipe.py check     verifies the committed bundles without training
    recipe.py inspect   says of an ONNX file what the agent refuses in it, and what to do instead
    recipe.py convert   makes a bundle of a float ONNX file: weight-only int8, static int8, and a table of what each costs

train, check and convert measure accuracy before and after quantization; a form that loses more than one point is refused.
"""

import argparse
import os
from pathlib import Path

# One thread and one set of kernels: sums in one order, so that the same versions give the same weights. OpenBLAS' kernels for
# AVX-512 sum in another order than those for AVX2, which these are.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")

import convert  # noqa: E402
import forms  # noqa: E402
from measure import TASKS  # noqa: E402
from prepare import Refused  # noqa: E402

MODELS = Path(__file__).resolve().parent.parent


def parser():
    plain = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="recipe.py", description=__doc__, formatter_class=plain)
    commands = top.add_subparsers(dest="command", required=True, metavar="train | check | inspect | convert")
    commands.add_parser("train", help="train anew and rewrite the committed bundles")
    commands.add_parser("check", help="verify the committed bundles without training")
    one = commands.add_parser("inspect", help="what the agent refuses in an ONNX file; exit code 1 where it does")
    one.add_argument("model", type=Path, metavar="MODEL.onnx")
    batch(one)
    one = commands.add_parser("convert", help="make a bundle of a float ONNX file", formatter_class=plain, description=(
        "Quantizes a float ONNX file, prints a table of its forms, and with --bundle and --manifest writes them into one\n"
        "bundle: model.onnx and [[alternative]]s, each with its accuracy and the tolerance for the golden samples."), epilog=(
        "CALIBRATION.npz holds `x` [n, ...] (float inputs as the model takes them, without the batch), and may hold `y` [n]\n"
        "(labels: the class; 0 or 1 of an anomaly) and `task`. A form is left out that loses more than one point of accuracy\n"
        "(AUC for an anomaly), without labels one that gives fewer of the float model's answers than --agreement-min.\n"
        "An anomaly without labels needs the manifest's raise_at to be judged at all."))
    one.add_argument("model", type=Path, metavar="MODEL.onnx")
    one.add_argument("calibration", type=Path, metavar="CALIBRATION.npz")
    one.add_argument("--test", type=Path, metavar="TEST.npz", help="held-back inputs to measure on; else the calibration's")
    one.add_argument("--task", choices=TASKS, help="else the manifest's, else the file's")
    batch(one)
    one.add_argument("--output", metavar="NAME", help="the output that is read, where there are several")
    one.add_argument("--main", choices=forms.FILES, default=forms.WEIGHT, help="the form of model.onnx (default: %(default)s)")
    one.add_argument("--forms", nargs="+", choices=forms.FILES, default=[forms.QOPERATOR, forms.QDQ], metavar="FORM",
                     help=f"the forms beside it, of {', '.join(forms.FILES)} (default: the static ones)")
    one.add_argument("--golden", type=count, default=4, metavar="N", help="golden samples to write (default: 4)")
    one.add_argument("--agreement-min", type=share, default=0.99, metavar="SHARE",
                     help="where there are no labels: answers that must be the float model's, 0 to 1 (default: 0.99)")
    one.add_argument("--manifest", type=Path, metavar="HEAD.toml",
                     help="the author's part of model.toml: all but [input], [output], [quantization] and [[golden]]")
    one.add_argument("--bundle", type=Path, metavar="DIRECTORY", help="where to write; nothing is written without it")
    return top


def batch(command):
    command.add_argument("--batch", type=int, choices=[1], help="pin a symbolic batch")


def count(text):
    value = int(text)
    if not 1 <= value <= convert.GOLDEN_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {convert.GOLDEN_MAX}")
    return value


def share(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("expected 0 to 1")
    return value


def demo_models(is_training):
    """Trains where asked to, and checks, the committed bundles."""
    import digits
    import motion

    for module, name in ((motion, "motion-anomaly"), (digits, "meter-digits")):
        if is_training:
            module.train(MODELS / name)
        module.check(MODELS / name)


def main(arguments=None):
    options = parser().parse_args(arguments)
    try:
        if options.command == "inspect":
            raise SystemExit(0 if convert.inspect(options.model, options.batch) else 1)
        if options.command == "convert":
            convert.convert(options)
        else:
            demo_models(options.command == "train")
    except (Refused, OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
