"""The forms of one model in a bundle: made, measured against the float model, left out where they lose too much."""

from dataclasses import dataclass

import numpy as np

import bundle
from measure import METRICS, tolerance
from prepare import Refused, shown
from quantize import quantize_weights
from refusals import refusals
from static_int8 import calibrate, quantize

NONE, WEIGHT, QOPERATOR, QDQ = "none", "weight-int8-per-channel", "qoperator-int8", "qdq-int8"
# File names beside model.onnx.
FILES = {NONE: "model-float.onnx", WEIGHT: "model-weight.onnx", QOPERATOR: "model-qoperator.onnx", QDQ: "model-qdq.onnx"}

# Beside the weight-only form of the committed bundles. QDQ answers as QOperator does, from more bytes and in float.
DEMO_FORMS = (QOPERATOR,)


@dataclass
class Form:
    """One form and what was measured of it."""
    name: str
    model: bytes
    outputs: np.ndarray
    quality: float | None
    agreement: float | None
    largest: float
    mean: float
    tolerance: float | None = None
    why_not: str | None = None

    def alternative(self):
        """Its keys in model.toml, and its bytes."""
        keys = {"file": FILES[self.name], "form": self.name}
        if self.quality is not None:
            keys["accuracy"] = round(self.quality, 4)
        return keys | {"tolerance": self.tolerance}, self.model


def make(model, names, calibration):
    """({form: bytes}, [(node, why it stays float in static int8)])."""
    made, left, seen = {}, [], None
    for name in names:
        if name == NONE:
            one = model
        elif name == WEIGHT:
            one = quantize_weights(model)
        else:
            seen = seen or calibrate(model, calibration)
            one, left = quantize(model, seen, name)
            # What stays float keeps its weights in int8 all the same.
            one = quantize_weights(one)
        found = refusals(one)
        if found:
            raise Refused(f"{name}: what was made of the model is refused by the agent:\n" + shown(found))
        made[name] = one.SerializeToString(deterministic=True)
    return made, left


def measure(model, made, answers, golden, main=WEIGHT, agreement_min=1 - bundle.LOSS_MAX):
    """(quality of the float model, a Form for each). `golden` are inputs, `main` is the form whose answers to them the
    bundle holds, `agreement_min` decides where there are no labels."""
    floats = bundle.run(model.SerializeToString(), answers.x)
    expected = bundle.run(made[main], golden)
    before, measured = answers.quality(floats), []
    for name, model_bytes in made.items():
        outputs = floats if name == NONE else bundle.run(model_bytes, answers.x)
        difference = np.abs(outputs.astype(np.float64) - floats)
        form = Form(name, model_bytes, outputs, answers.quality(outputs), answers.agreement(floats, outputs),
                    float(difference.max()), float(difference.mean()))
        if name != main:
            form.tolerance = tolerance(expected, bundle.run(model_bytes, golden))
        form.why_not = loss(form, before, answers.task, agreement_min)
        measured.append(form)
    return before, measured


def loss(form, before, task, agreement_min):
    """Why a form is too far from the float model; none where it is not."""
    if not np.isfinite(form.outputs).all():
        return "its answers are not finite"
    if form.quality is None:
        if form.agreement is not None and form.agreement < agreement_min:
            return f"{100 * form.agreement:.2f}% of its answers are the float model's, expected at least {100 * agreement_min:g}%"
        return None
    if before - form.quality > bundle.LOSS_MAX:
        return (f"it loses {100 * (before - form.quality):.2f} points of {METRICS[task]} ({before:.4f} to "
                f"{form.quality:.4f}), more than {100 * bundle.LOSS_MAX:.0f} point")
    return None


def show(title, before, measured, answers, float_bytes):
    """Prints the table, and the reasons of what is left out."""
    metric = METRICS.get(answers.task, "accuracy") if before is not None else "accuracy"
    print(f"{title}: {len(answers.x)} inputs, against the float model in ONNX Runtime without its optimiser")
    print(f"{'form':24} {metric:>9} {'agreement':>9} {'largest':>10} {'mean':>10} {'bytes':>9} {'tolerance':>9}")

    def row(name, quality, agreement, largest, mean, size, bound):
        columns = ((quality, ".4f"), (agreement, ".4f"), (bound, ".2g"))
        quality, agreement, bound = ("-" if v is None else f"{v:{w}}" for v, w in columns)
        print(f"{name:24} {quality:>9} {agreement:>9} {largest:>10.3g} {mean:>10.3g} {size:>9} {bound:>9}")

    if all(form.name != NONE for form in measured):
        row("float", before, 1, 0, 0, float_bytes, None)
    for form in measured:
        row(form.name, form.quality, form.agreement, form.largest, form.mean, len(form.model), form.tolerance)
    for form in measured:
        if form.why_not:
            print(f"{form.name}: left out: {form.why_not}")


def choose(title, measured, main=WEIGHT):
    """(the main form, the alternatives that are good enough)."""
    first = next(form for form in measured if form.name == main)
    if first.why_not:
        raise SystemExit(f"{title}: {main} cannot be model.onnx: {first.why_not}; expected another form: --main none keeps "
                         "the float model")
    return first, [form for form in measured if form is not first and not form.why_not]


def demo_forms(title, model, calibration, answers, golden):
    """(quality of the float model, the main form, the alternatives) of a committed bundle, with their table printed."""
    made, _ = make(model, [WEIGHT, *DEMO_FORMS], calibration)
    before, measured = measure(model, made, answers, golden)
    show(title, before, measured, answers, len(model.SerializeToString()))
    return before, *choose(title, measured)
