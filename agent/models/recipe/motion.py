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
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPRegressor

import bundle
from quantize import finish, quantize_weights

SEED = 7
WINDOW, STRIDE, RATE_HZ = 20, 5, 10
COLUMNS = ["accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z"]
NORMAL, ANOMALOUS = ("standing", "walking"), ("running", "badminton")
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


def held_back_auc(model_bytes, mean, std):
    """AUC of anomalous against normal windows of the held-back recordings."""
    scores, truth = [], []
    for anomalous, labels in enumerate((NORMAL, ANOMALOUS)):
        for series in recordings("test", labels).values():
            tensors = ((windows(series) - mean) / std).reshape(-1, WINDOW * 6)
            scores.append(bundle.run(model_bytes, tensors))
            truth.append(np.full(len(tensors), anomalous))
    return float(roc_auc_score(np.concatenate(truth), np.concatenate(scores)))


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
    float_bytes = model.SerializeToString(deterministic=True)
    model_bytes = quantize_weights(model).SerializeToString(deterministic=True)
    before, after = held_back_auc(float_bytes, mean, std), held_back_auc(model_bytes, mean, std)
    bundle.report("motion-anomaly", "AUC", before, after, model_bytes, float_bytes)
    highest = float(bundle.run(model_bytes, tensors).max())
    sections = {
        "": {
            "format": 1, "name": "motion-anomaly", "version": "1.0.0", "licence": "Apache-2.0 OR MIT",
            "description": "Scores two seconds of wrist motion; standing and walking are normal, sport is not.",
            "source": "BasicMotions (accelerometer and gyroscope of a smart watch), from the PyPI package aeon 1.6.0, BSD-3-Clause",
            "task": "anomaly",
        },
        "input": {"name": "x", "shape": [1, WINDOW * 6], "type": "f32"},
        "output": {"name": "score", "shape": [1]},
        "quantization": {"form": "weight-int8-per-channel", "float_accuracy": round(before, 4), "accuracy": round(after, 4)},
        "series": {
            "columns": COLUMNS, "units": ["m/s2 (assumed)"] * 3 + ["rad/s (assumed)"] * 3, "rate_hz": float(RATE_HZ), "window_rows": WINDOW,
            "stride_rows": STRIDE, "layout": "rows", "mean": mean, "std": std,
        },
        # The highest score of normal training windows is the yardstick: raise at three times, clear below twice.
        "anomaly": {"score": "output", "raise_at": round(3 * highest, 2), "clear_below": round(2 * highest, 2),
                    "raise_after": 2, "clear_after": 3},
    }
    golden = []
    for label, number in (("standing", 4), ("walking", 4), ("running", 4), ("badminton", 4)):
        rows = recordings("test", (label,))[label][number].T[40:40 + WINDOW]
        score = bundle.run(model_bytes, ((rows - mean) / std).reshape(1, -1))
        golden.append({"name": label, "rows": rows.round(6), "expected": bundle.floats(score),
                       "tolerance": max(1e-4, float(f"{score[0] * 1e-4:.1g}"))})
    bundle.write(directory, sections, golden, model_bytes)
    write_demo(directory / "demo")


def check(directory):
    """Verifies the committed bundle against its package's data, without training."""
    manifest, model_bytes = bundle.read(directory)
    mean, std = np.array(manifest["series"]["mean"]), np.array(manifest["series"]["std"])
    bundle.check_golden(directory, [((np.array(s["rows"]) - mean) / std).ravel() for s in manifest["golden"]])
    auc, promised = held_back_auc(model_bytes, mean, std), manifest["quantization"]
    print(f"motion-anomaly: AUC {auc:.4f}, promised {promised['accuracy']}, float {promised['float_accuracy']}")
    if abs(auc - promised["accuracy"]) > 1e-3 or promised["float_accuracy"] - auc > bundle.LOSS_MAX:
        raise SystemExit("motion-anomaly: the AUC is not what model.toml says")
    events = simulate(model_bytes, manifest)
    print("motion-anomaly: the demo's series:", ", ".join(f"{kind} at {at} s ({what})" for at, kind, what in events))
    if [kind for _, kind, _ in events] != ["raised", "cleared"] * 3:
        raise SystemExit("motion-anomaly: the demo's series must raise and clear three times")
