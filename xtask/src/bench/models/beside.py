"""Bundles of the reference models for the agent, and ONNX Runtime's latency on the same files.

    beside.py bundles SHARED DIR     writes DIR/<model>/ with every form, and small pictures for a camera
    beside.py measure SHARED MODEL RUNS   prints {form: median latency in us} as one line of JSON

One thread, batch 1, ONNX Runtime's own graph optimiser on. `SHARED` is the folder with the third-party models.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

# Form in model.toml, and the tolerance that the form's answers need against the float ones'.
FORMS = {"f32": ("none", None), "wq8": ("weight-int8-per-channel", 0.2), "qop_s8s8": ("qoperator-int8", 0.5)}
SERIES_ROWS, SERIES_COLUMNS = 5, 128
PICTURES, PICTURE_SIZE = 8, (320, 240)


def series(rows, columns):
    names = [f"c{k}" for k in range(columns)]
    return (f"[series]\ncolumns = {json.dumps(names)}\nunits = {json.dumps(names)}\nrate_hz = 1\nwindow_rows = {rows}\n"
            f'stride_rows = {rows}\nlayout = "rows"\nmean = {[0.0] * columns}\nstd = {[1.0] * columns}\n')


def image(side, order, layout):
    return (f'[image]\nwidth = {side}\nheight = {side}\nchannels = "{order}"\nlayout = "{layout}"\nresize = "bilinear"\n'
            "scale = 0.00392156862745098\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n")


def anomaly(score):
    return f'[anomaly]\nscore = "{score}"\nraise_at = 1e6\nclear_below = 1\nraise_after = 1\nclear_after = 1\n'


def labels(shared):
    lines = (shared / "data/photos/coco_labels.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and line.strip() != "n/a"]


def models(shared):
    """Name -> (task, the sections of model.toml, how far outputs may be off in units of the output)."""
    detection = (f'[detection]\ndecode = "grid"\nlabels = {json.dumps(labels(shared))}\nscore_min = 0.5\niou_max = 0.45\n'
                 "boxes_max = 20\n")
    person = '[classification]\nlabels = ["nobody", "person"]\nscores = "raw"\ntop = 2\n'
    return {
        "vww": ("classification", image(96, "rgb", "nhwc") + person, 1.0),
        "ad01": ("anomaly", series(SERIES_ROWS, SERIES_COLUMNS) + anomaly("reconstruction"), 20.0),
        "nab_ae": ("anomaly", series(32, 1) + anomaly("output"), 1.0),
        "fdet": ("detection", image(352, "bgr", "nchw") + detection, 10.0),
    }


def files(shared, model):
    found = ((form, shared / "models" / f"{model}_{form}.onnx") for form in (*FORMS, "ort_u8s8pc"))
    return {form: path for form, path in found if path.is_file()}


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def sample(shared, model):
    """One input of the model's stored samples, with its batch of 1."""
    archive = np.load(shared / "models" / f"{model.removesuffix('_ae')}_sample.npz")
    return archive["x"][:1].astype(np.float32)


def bundle(shared, model, directory):
    task, sections, unit = models(shared)[model]
    found, x = files(shared, model), sample(shared, model)
    runtime = session(found["f32"])
    (given,), taken = runtime.get_inputs(), runtime.get_outputs()[0]
    y = runtime.run([taken.name], {given.name: x})[0].astype(np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    x.tofile(directory / "x.f32")
    y.tofile(directory / "y.f32")
    text = (f'format = 1\nname = "{model.replace("_", "-")}"\nversion = "1"\nlicence = "see the folder of the reference models"\n'
            f'task = "{task}"\n[input]\nname = "{given.name}"\nshape = {list(x.shape)}\ntype = "f32"\n'
            f'[output]\nname = "{taken.name}"\nshape = {list(y.shape)}\n[quantization]\nform = "none"\n{sections}')
    for form, path in found.items():
        if form == "f32":
            (directory / "model.onnx").write_bytes(path.read_bytes())
        elif form in FORMS:
            name, tolerance = FORMS[form]
            (directory / f"{form}.onnx").write_bytes(path.read_bytes())
            text += f'[[alternative]]\nfile = "{form}.onnx"\nform = "{name}"\ntolerance = {tolerance * unit}\n'
    text += f'[[golden]]\nname = "sample"\ntensor = "x.f32"\nexpected_file = "y.f32"\ntolerance = {1e-4 * unit}\n'
    (directory / "model.toml").write_text(text, encoding="utf-8")


def pictures(shared, directory):
    directory.mkdir(parents=True, exist_ok=True)
    photos = sorted((shared / "data/photos").glob("*.[jb]*p*"))[:PICTURES]
    for photo in photos:
        Image.open(photo).convert("RGB").resize(PICTURE_SIZE).save(directory / f"{photo.stem}.jpg", quality=90)


def measure(shared, model, runs):
    x, answer = sample(shared, model), {}
    for form, path in files(shared, model).items():
        runtime = session(path)
        feed = {runtime.get_inputs()[0].name: x}
        names = [runtime.get_outputs()[0].name]
        times = []
        for _ in range(runs + runs // 10):
            began = time.perf_counter_ns()
            runtime.run(names, feed)
            times.append((time.perf_counter_ns() - began) / 1000)
        answer[form] = float(np.median(times[runs // 10:]))
    print(json.dumps(answer))


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "bundles":
        shared, directory = Path(sys.argv[2]), Path(sys.argv[3])
        for model in models(shared):
            bundle(shared, model, directory / model)
        pictures(shared, directory / "pictures")
    elif len(sys.argv) == 5 and sys.argv[1] == "measure":
        measure(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
