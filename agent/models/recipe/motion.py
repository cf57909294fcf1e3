"""motion-anomaly: an autoencoder on two-second windows of a wrist's accelerometer and gyroscope.

Data: BasicMotions as packaged by aeon (40 training and 40 test recordings of 10 s at 10 Hz from a smart watch: standing,
walking, running, badminton). Normal is standing and walking; running and badminton are anomalous. The autoencoder sees
normal training recordings only; the score is the mean squared error of the reconstruction, computed inside the graph.
The test recordings are held back: they give the AUC, the golden samples and the demo's series.
"""

import csv
import warnings

import numpy as np
from aeon.datasets import load_basic_motions
from onnx import helper
from sklearn.neural_network import MLPRegressor

import bundle
import forms
from measure import Answers
from quantize import finish

SEED = 7
WINDOW, STRIDE, RATE_HZ = 20, 5, 10
COLUMNS = ["accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z"]
NORMAL, ANOMALOUS = ("standing", "walking"), ("running", "badminton")
# Golden samples: a window of each activity's fifth held-back recording.
GOLDEN = ("standing", "walking", "running", "badminton")
# (activity, number of the held-back recording): the demo's series, 10 s each.
DEMO = [("standing", 0), ("walking", 0), ("running", 0), ("walking", 1), ("standing", 1),
        ("badminton", 0), ("walking", 2), ("standing", 2), ("running", 1), ("standing", 3)]


def recordings(split, labels):
    """f64 [recordings, 6, 100] of the labels."""
    series, activities = load_basic_motions(split=split)
    return {label: series[activities == label] for label in labels}


def windows(series, stride=1):
    """[recordings, 6, n] to [windows, WINDOW, 6]."""
    starts = range(0, series.shape[2] - WINDOW + 1, stride)
    return np.stack([one[:, i:i + WINDOW].T for one in series for i in starts])


def demo_rows():
    """The held-back recordings of the demo, one after the other: [rows, 6] and a label per row."""
    held_back = recordings("test", NORMAL + ANOMALOUS)
    rows = np.concatenate([held_back[label][number].T for label, number in DEMO])
    labels = [label for label, _ in DEMO for _ in range(100)]
    return rows, labels


def autoencoder(network):
    """scikit-learn's layers as ONNX, the score included: f32 [1, 120] to [1]."""
    nodes, weights, value = [], {}, "x"
    layers = list(zip(network.coefs_, network.intercepts_, strict=True))
    for i, (weight, bias) in enumerate(layers):
        weights |= {f"w{i}": weight, f"b{i}": bias}
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"g{i}"]))
        value = f"g{i}"
        if i + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [value], [f"r{i}"]))
            value = f"r{i}"
    nodes += [
        helper.make_node("Sub", [value, "x"], ["difference"]),
        helper.make_node("Mul", ["difference", "difference"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["score"], axes=[1], keepdims=0),
    ]
    return finish(nodes, weights, [("x", [1, WINDOW * 6])], [("score", [1])], "motion_anomaly")


def held_back(mean, std):
    """Normal and anomalous windows of the held-back recordings, and which they are."""
    tensors, truth = [], []
    for anomalous, labels in enumerate((NORMAL, ANOMALOUS)):
        for series in recordings("test", labels).values():
            tensors.append(((windows(series) - mean) / std).reshape(-1, WINDOW * 6))
            truth.append(np.full(len(tensors[-1]), anomalous))
    return Answers(np.concatenate(tensors), "anomaly", np.concatenate(truth))


def write_demo(directory):
    """The demo's CSV: seconds, six columns, the activity for people."""
    rows, labels = demo_rows()
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "motion.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["time_s", *COLUMNS, "activity"])
        for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
            writer.writerow([f"{i / RATE_HZ:.1f}", *(f"{v:.6f}" for v in row), label])


def simulate(model_bytes, manifest):
    """The agent's windows and hysteresis over the demo's series: [(second, raised or cleared, activity)]."""
    rows, labels = demo_rows()
    spec, mean, std = manifest["anomaly"], np.array(manifest["series"]["mean"]), np.array(manifest["series"]["std"])
    starts = range(0, len(rows) - WINDOW + 1, STRIDE)
    tensors = np.stack([((rows[i:i + WINDOW] - mean) / std).ravel() for i in starts])
    scores = bundle.run(model_bytes, tensors)
    raised, count, events = False, 0, []
    for start, score in zip(starts, scores, strict=True):
        against = score < spec["clear_below"] if raised else score >= spec["raise_at"]
        count = count + 1 if against else 0
        if count == (spec["clear_after"] if raised else spec["raise_after"]):
            raised, count = not raised, 0
            end = start + WINDOW - 1
            events.append((end / RATE_HZ, "raised" if raised else "cleared", labels[end]))
    return events


def train(directory):
    """Trains, quantizes, reports and writes the bundle and the demo's series."""
    normal = np.concatenate(list(recordings("train", NORMAL).values()))
    mean, std = normal.mean(axis=(0, 2)).round(6), normal.std(axis=(0, 2)).round(6)
    tensors = ((windows(normal) - mean) / std).reshape(-1, WINDOW * 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = MLPRegressor(hidden_layer_sizes=(64, 16, 64), max_iter=150, random_state=SEED).fit(tensors, tensors)
    model = autoencoder(network)
    # The ranges of int8 come from sport's training recordings too: high scores would end where normal ones do.
    everything = np.concatenate(list(recordings("train", NORMAL + ANOMALOUS).values()))
    calibration = ((windows(everything) - mean) / std).reshape(-1, WINDOW * 6)
    held_out = [recordings("test", (label,))[label][4].T[40:40 + WINDOW] for label in GOLDEN]
    before, main, others = forms.demo_forms("motion-anomaly", model, calibration, held_back(mean, std),
                                            np.stack([((rows - mean) / std).ravel() for rows in held_out]))
    highest = float(bundle.run(main.model, tensors).max())
    sections = {
        "": {
            "format": 1, "name": "motion-anomaly", "version": "1.0.0", "licence": "Apache-2.0 OR MIT",
            "description": "Scores two seconds of wrist motion; standing and walking are normal, sport is not.",
            "source": "BasicMotions (accelerometer and gyroscope of a smart watch), from the PyPI package aeon 1.6.0, BSD-3-Clause",
            "task": "anomaly",
        },
        "input": {"name": "x", "shape": [1, WINDOW * 6], "type": "f32"},
        "output": {"name": "score", "shape": [1]},
        "quantization": {"form": "weight-int8-per-channel", "float_accuracy": round(before, 4), "accuracy": round(main.quality, 4)},
        "series": {
            "columns": COLUMNS, "units": ["m/s2 (assumed)"] * 3 + ["rad/s (assumed)"] * 3, "rate_hz": float(RATE_HZ), "window_rows": WINDOW,
            "stride_rows": STRIDE, "layout": "rows", "mean": mean, "std": std,
        },
        # The highest score of normal training windows is the yardstick: raise at three times, clear below twice.
        "anomaly": {"score": "output", "raise_at": round(3 * highest, 2), "clear_below": round(2 * highest, 2),
                    "raise_after": 2, "clear_after": 3},
    }
    golden = []
    for label, rows in zip(GOLDEN, held_out, strict=True):
        score = bundle.run(main.model, ((rows - mean) / std).reshape(1, -1))
        golden.append({"name": label, "rows": rows.round(6), "expected": bundle.floats(score),
                       "tolerance": max(1e-4, float(f"{score[0] * 1e-4:.1g}"))})
    bundle.write(directory, sections, golden, main.model, [form.alternative() for form in others])
    write_demo(directory / "demo")


def check(directory):
    """Verifies the committed bundle against its package's data, without training."""
    manifest, _ = bundle.read(directory)
    mean, std = np.array(manifest["series"]["mean"]), np.array(manifest["series"]["std"])
    bundle.check_golden(directory, [((np.array(s["rows"]) - mean) / std).ravel() for s in manifest["golden"]])
    answers = held_back(mean, std)
    bundle.check_quality(directory, "AUC", lambda model_bytes: answers.quality(bundle.run(model_bytes, answers.x)))
    for file in ["model.onnx", *(alternative["file"] for alternative in manifest.get("alternative", []))]:
        events = simulate((directory / file).read_bytes(), manifest)
        print(f"motion-anomaly: {file}: the demo's series:", ", ".join(f"{kind} at {at} s ({what})" for at, kind, what in events))
        if [kind for _, kind, _ in events] != ["raised", "cleared"] * 3:
            raise SystemExit("motion-anomaly: the demo's series must raise and clear three times")
