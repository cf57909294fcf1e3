"""The commands `inspect` and `convert`: what the agent says of a model, and a bundle that holds it in several forms."""

import tomllib
from collections import Counter

import numpy as np

import bundle
import forms
from measure import TASKS, Answers, engine_tolerance
from prepare import Refused, load, pin, read, shown, tidy
from refusals import dimensions, real_inputs, refusals, shape_refusals

SAMPLES_MAX = 100_000
GOLDEN_MAX = 64
# An expected output of more elements lies in a file of its own.
INLINE_MAX = 64
OWN_SECTIONS = ("input", "output", "quantization", "alternative", "golden")


def inspect(path, batch=None):
    """Prints what the model is and what the agent refuses in it; true where nothing."""
    model = read(path)
    if batch is not None:
        pin(model, batch)
    found = [f"the agent refuses: {text}" for text in refusals(model)]
    if model.HasField("graph"):
        found += [f"convert refuses: {text}" for text in shape_refusals(model)]
    opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    print(f"{path.name}: {path.stat().st_size} bytes, opset {opsets}")
    for kind, values in (("input", real_inputs(model.graph)), ("output", model.graph.output)):
        for value in values:
            print(f"{kind} {value.name} [{', '.join(map(str, dimensions(value)))}]")
    counts = Counter(node.op_type for node in model.graph.node)
    print("operators:", ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none")
    print(shown(found) or "nothing is refused; whether an engine has each operator is seen when it loads")
    return not found


def samples(path, sizes, task):
    """Answers of an .npz: `x` [n, ...], where there are labels `y` [n], and `task`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise Refused(f"{path}: no .npz file of arrays ({error})") from error
    if "x" not in arrays:
        raise Refused(f"{path}: arrays {sorted(arrays)}; expected `x`, the inputs")
    x = arrays["x"].astype(np.float32)
    if list(x.shape[1:]) != sizes[1:] or not 0 < len(x) <= SAMPLES_MAX:
        raise Refused(f"{path}: `x` has the shape {list(x.shape)}; expected [n, {', '.join(map(str, sizes[1:]))}] with n in "
                      f"1..={SAMPLES_MAX}")
    if not np.isfinite(x).all():
        raise Refused(f"{path}: `x` holds values that are not finite; expected finite ones")
    task = task or (str(arrays["task"]) if "task" in arrays else None)
    if task not in TASKS:
        raise Refused(f"{path}: task {task}; expected one of {', '.join(TASKS)}: give --task, or `task` in the file")
    y = arrays.get("y")
    if y is not None and (y.shape != (len(x),) or y.dtype.kind not in "iub"):
        raise Refused(f"{path}: `y` is {y.dtype} {list(y.shape)}; expected {len(x)} integers, a label for each input")
    if y is not None and task == "anomaly" and set(np.unique(y)) != {0, 1}:
        raise Refused(f"{path}: `y` holds {np.unique(y)[:5].tolist()}; expected 0 (normal) and 1 (anomalous), both")
    return Answers(x, task, y)


def head_of(path):
    """The author's part of model.toml: its text and what it says."""
    text = path.read_text(encoding="utf-8")
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path}: {error}; expected the author's part of model.toml") from error
    own = [name for name in OWN_SECTIONS if name in said]
    if own:
        raise Refused(f"{path}: sections {own}; expected none of {', '.join(OWN_SECTIONS)}: convert writes them")
    return text, said


def convert(options):
    """Makes the forms, prints their table, and writes the bundle where one is asked for."""
    if (options.bundle is None) != (options.manifest is None):
        raise Refused("--bundle and --manifest; expected both or neither")
    text, said = head_of(options.manifest) if options.manifest else ("", {})
    model = tidy(load(options.model, options.batch), options.output)
    sizes = dimensions(model.graph.input[0])
    task = options.task or said.get("task")
    calibration = samples(options.calibration, sizes, task)
    answers = samples(options.test, sizes, task or calibration.task) if options.test else calibration
    answers.raise_at = said.get("anomaly", {}).get("raise_at")
    title = options.model.name
    if answers is calibration:
        print(f"{title}: measured on the calibration inputs, for want of --test")
    state_output_shape(model, answers.x[:1])
    names = list(dict.fromkeys([options.main, *options.forms]))
    made, left = forms.make(model, names, calibration.x)
    for node, why in left:
        print(f"{title}: `{node}` stays float in static int8: {why}")
    chosen = np.linspace(0, len(answers.x) - 1, min(options.golden, len(answers.x))).astype(int)
    before, measured = forms.measure(model, made, answers, answers.x[chosen], options.main, options.agreement_min)
    forms.show(title, before, measured, answers, len(model.SerializeToString()))
    main, others = forms.choose(title, measured, options.main)
    if options.bundle:
        write(options.bundle, text, model, main, others, before, answers.x[chosen])


def state_output_shape(model, x):
    """Writes the output's shape, as a run gave it, into the graph."""
    found = bundle.run(model.SerializeToString(), x)
    shape = model.graph.output[0].type.tensor_type.shape
    del shape.dim[:]
    for size in found.shape:
        shape.dim.add().dim_value = size


def write(directory, text, model, main, others, before, golden):
    """The bundle: the author's part, what is known of the model, its forms, and golden samples as tensors."""
    quantization = {"form": main.name}
    if main.quality is not None:
        quantization |= {"float_accuracy": round(before, 4), "accuracy": round(main.quality, 4)}
    sections = {
        "input": {"name": model.graph.input[0].name, "shape": dimensions(model.graph.input[0]), "type": "f32"},
        "output": {"name": model.graph.output[0].name, "shape": dimensions(model.graph.output[0])},
        "quantization": quantization,
    }
    (directory / "golden").mkdir(parents=True, exist_ok=True)
    entries = []
    for i, (x, expected) in enumerate(zip(golden, bundle.run(main.model, golden), strict=True)):
        (directory / f"golden/{i}.f32").write_bytes(x.astype("<f4").tobytes())
        entry = {"name": f"sample {i}", "tensor": f"golden/{i}.f32"}
        if expected.size > INLINE_MAX:
            entry["expected_file"] = f"golden/{i}-expected.f32"
            (directory / entry["expected_file"]).write_bytes(expected.astype("<f4").tobytes())
        else:
            entry["expected"] = bundle.floats(expected)
        entries.append(entry | {"tolerance": engine_tolerance(expected)})
    for file in forms.FILES.values():
        (directory / file).unlink(missing_ok=True)
    bundle.write(directory, sections, entries, main.model, [form.alternative() for form in others], text)
    print(f"{directory}: model.toml, model.onnx ({main.name}), {', '.join(forms.FILES[f.name] for f in others) or 'no other form'}, "
          f"{len(entries)} golden samples")
