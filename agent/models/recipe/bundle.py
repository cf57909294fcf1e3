"""Writes and reads bundles: model.toml beside model.onnx, and runs models in ONNX Runtime."""

import json
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime

BUNDLE_BYTES_MAX = 1_000_000
# Largest loss of accuracy or AUC by quantization, one point.
LOSS_MAX = 0.01


def session(model_bytes):
    """An ONNX Runtime session on one thread and without graph optimisation.

    Its optimiser turns an int8 Gemm or MatMul weight into MatMulNBits at accuracy level 4, which rounds activations to
    int8 too: answers then differ from what the ONNX graph says by up to half a percent.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])


def run(model_bytes, tensors):
    """Runs each tensor [1, ...] on its own and stacks the outputs."""
    runtime = session(model_bytes)
    name = runtime.get_inputs()[0].name
    return np.concatenate([runtime.run(None, {name: x[None].astype(np.float32)})[0] for x in tensors])


def toml_value(value):
    """One TOML value; JSON's scalars and arrays are TOML's too."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        return "[\n" + "".join(f"  {json.dumps(row)},\n" for row in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def write(directory, sections, golden, model_bytes, alternatives=(), head=""):
    """Writes model.toml (the head as it is, then sections: name -> keys; "" is the top), model.onnx, and the alternatives
    (keys, bytes) beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = head.rstrip().splitlines()
    for name, keys in sections.items():
        lines += [f"\n[{name}]"] if name else []
        lines += [f"{key} = {toml_value(value)}" for key, value in keys.items()]
    for keys, alternative_bytes in alternatives:
        lines += ["\n[[alternative]]"] + [f"{key} = {toml_value(value)}" for key, value in keys.items()]
        (directory / keys["file"]).write_bytes(alternative_bytes)
    for sample in golden:
        lines += ["\n[[golden]]"] + [f"{key} = {toml_value(value)}" for key, value in sample.items()]
    (directory / "model.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "model.onnx").write_bytes(model_bytes)


def read(directory):
    """The parsed model.toml and the model's bytes."""
    manifest = tomllib.loads((directory / "model.toml").read_text(encoding="utf-8"))
    return manifest, (directory / "model.onnx").read_bytes()


def floats(values, digits=7):
    """Numbers short enough to read, exact enough to compare."""
    return [float(f"{v:.{digits}g}") for v in np.ravel(values)]


def check_quality(directory, metric, measure):
    """Measures accuracy or AUC of every form again and compares with what model.toml says."""
    manifest, _ = read(directory)
    before = manifest["quantization"]["float_accuracy"]
    for said in [{"file": "model.onnx"} | manifest["quantization"], *manifest.get("alternative", [])]:
        found = measure((directory / said["file"]).read_bytes())
        print(f"{directory.name}: {said['file']}: {metric} {found:.4f}, promised {said['accuracy']}, float {before}")
        if abs(found - said["accuracy"]) > 1e-3 or before - found > LOSS_MAX:
            raise SystemExit(f"{directory.name}: {said['file']}: the {metric} is not what model.toml says")


def check_golden(directory, tensors):
    """Runs the bundle's golden tensors in ONNX Runtime, through every form, and compares."""
    manifest, _ = read(directory)
    files = [("model.onnx", None), *((a["file"], a["tolerance"]) for a in manifest.get("alternative", []))]
    for file, tolerance in files:
        outputs = run((directory / file).read_bytes(), tensors).reshape(len(tensors), -1)
        for sample, output in zip(manifest["golden"], outputs, strict=True):
            difference = float(np.abs(output - np.array(sample["expected"], np.float32)).max())
            if not difference <= (sample["tolerance"] if tolerance is None else tolerance):
                raise SystemExit(f"{directory.name}: {file}: golden sample {sample['name']} differs by {difference}")
    size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
    if size > BUNDLE_BYTES_MAX:
        raise SystemExit(f"{directory.name}: {size} bytes, expected at most {BUNDLE_BYTES_MAX}")
    print(f"{directory.name}: {len(tensors)} golden samples agree in {len(files)} forms, {size} bytes in the bundle's directory")
