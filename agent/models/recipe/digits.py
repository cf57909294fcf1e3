"""meter-digits: a small convolutional classifier of handwritten digits on an 8 x 8 sensor.

Data: scikit-learn's digits (1,797 pictures of 8 x 8 pixels, 0..16; from the UCI Optical Recognition of Handwritten Digits
set). 70% train, 30% held back, split by a fixed seed. Pictures of the demo and of golden samples are held back, stored as
PNG of 64 x 64 pixels: each sensor pixel is a block of 8 x 8, so that the runtime's bilinear resize gives it back exactly.
"""

import numpy as np
from onnx import helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bundle
import forms
from measure import Answers
from quantize import finish

SEED = 11
EPOCHS, BATCH, RATE = 40, 32, 2e-3
CHANNELS = (16, 32)
BLOCK, LEVEL = 8, 15
DEMO_PICTURES, GOLDEN_PICTURES = 40, 4


def split():
    """(x_train, x_test, y_train, y_test): pictures f32 [n, 1, 8, 8] in 0..=1."""
    digits = load_digits()
    pictures = (digits.images / 16).astype(np.float32)[:, None]
    return train_test_split(pictures, digits.target, test_size=0.3, random_state=SEED, stratify=digits.target)


def patches(x):
    """[n, c, h, w] to [n, h * w, c * 9]: 3 x 3 neighbourhoods, zero padded."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    taps = [padded[:, :, i:i + h, j:j + w] for i in range(3) for j in range(3)]
    return np.stack(taps, axis=2).reshape(n, c * 9, h * w).transpose(0, 2, 1)


def unpatch(grad, shape):
    """The transpose of patches: sums gradients back into [n, c, h, w]."""
    n, c, h, w = shape
    taps = grad.transpose(0, 2, 1).reshape(n, c, 9, h, w)
    padded = np.zeros((n, c, h + 2, w + 2), np.float32)
    for k in range(9):
        padded[:, :, k // 3:k // 3 + h, k % 3:k % 3 + w] += taps[:, :, k]
    return padded[:, :, 1:-1, 1:-1]


def forward(p, x):
    """Logits and what the backward pass needs."""
    n = len(x)
    a1 = patches(x)
    h1 = np.maximum(a1 @ p["k1"].reshape(CHANNELS[0], -1).T + p["c1"], 0)
    m1 = h1.transpose(0, 2, 1).reshape(n, CHANNELS[0], 8, 8)
    a2 = patches(m1)
    h2 = np.maximum(a2 @ p["k2"].reshape(CHANNELS[1], -1).T + p["c2"], 0)
    blocks = h2.transpose(0, 2, 1).reshape(n, CHANNELS[1], 4, 2, 4, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, -1, 4)
    best = blocks.argmax(axis=2)
    flat = np.take_along_axis(blocks, best[..., None], axis=2)[..., 0]
    return flat @ p["w"] + p["b"], (a1, h1, m1, a2, h2, best, flat)


def backward(p, logits, y, cache):
    """Gradients of the mean cross entropy."""
    a1, h1, m1, a2, h2, best, flat = cache
    n = len(y)
    g = np.exp(logits - logits.max(1, keepdims=True))
    g /= g.sum(1, keepdims=True)
    g[np.arange(n), y] -= 1
    g /= n
    grads = {"w": flat.T @ g, "b": g.sum(0)}
    pooled = np.zeros((n, flat.shape[1], 4), np.float32)
    np.put_along_axis(pooled, best[..., None], (g @ p["w"].T)[..., None], axis=2)
    g2 = pooled.reshape(n, CHANNELS[1], 4, 4, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, CHANNELS[1], 64)
    g2 = g2.transpose(0, 2, 1) * (h2 > 0)
    grads["k2"] = np.einsum("npo,npk->ok", g2, a2, optimize=True).reshape(p["k2"].shape)
    grads["c2"] = g2.sum((0, 1))
    g1 = unpatch(g2 @ p["k2"].reshape(CHANNELS[1], -1), m1.shape)
    g1 = g1.reshape(n, CHANNELS[0], 64).transpose(0, 2, 1) * (h1 > 0)
    grads["k1"] = np.einsum("npo,npk->ok", g1, a1, optimize=True).reshape(p["k1"].shape)
    grads["c1"] = g1.sum((0, 1))
    return grads


def fit(x, y):
    """Adam on pictures shifted by up to one pixel; returns the weights."""
    rng = np.random.default_rng(SEED)

    def normal(*shape, fan):
        return (rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)

    p = {"k1": normal(CHANNELS[0], 1, 3, 3, fan=9), "c1": np.zeros(CHANNELS[0], np.float32),
         "k2": normal(CHANNELS[1], CHANNELS[0], 3, 3, fan=9 * CHANNELS[0]), "c2": np.zeros(CHANNELS[1], np.float32),
         "w": normal(CHANNELS[1] * 16, 10, fan=CHANNELS[1] * 16), "b": np.zeros(10, np.float32)}
    first, second = ({k: np.zeros_like(v) for k, v in p.items()} for _ in range(2))
    step = 0
    for epoch in range(EPOCHS):
        rate = RATE * (1 - epoch / EPOCHS)
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            step += 1
            chosen = order[start:start + BATCH]
            shift = tuple(rng.integers(-1, 2, size=2))
            batch = np.roll(x[chosen], shift, axis=(2, 3)) if epoch < EPOCHS - 5 else x[chosen]
            logits, cache = forward(p, batch)
            for k, g in backward(p, logits, y[chosen], cache).items():
                first[k] += 0.1 * (g - first[k])
                second[k] += 0.001 * (g * g - second[k])
                p[k] -= (rate * first[k] / (1 - 0.9**step) / (np.sqrt(second[k] / (1 - 0.999**step)) + 1e-8)).astype(np.float32)
    return p


def network(p):
    """The weights as ONNX: f32 [1, 1, 8, 8] to probabilities [1, 10]; Softmax stays float."""
    nodes = [
        helper.make_node("Conv", ["x", "k1", "c1"], ["a1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a1"], ["h1"]),
        helper.make_node("Conv", ["h1", "k2", "c2"], ["a2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a2"], ["h2"]),
        helper.make_node("MaxPool", ["h2"], ["m2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["m2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return finish(nodes, p, [("x", [1, 1, 8, 8])], [("probabilities", [1, 10])], "meter_digits")


def accuracy(model_bytes, x, y):
    """Share of right answers."""
    return float((bundle.run(model_bytes, x).argmax(1) == y).mean())


def save_picture(path, x):
    """f32 [1, 8, 8] in 0..=1 as a grey PNG of 64 x 64."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.rint(x[0] * 16).astype(np.uint8) * LEVEL
    Image.fromarray(levels.repeat(BLOCK, 0).repeat(BLOCK, 1)).save(path, optimize=True)


def load_picture(path):
    """The tensor that the runtime makes of such a PNG: f32 [1, 8, 8]."""
    return (np.asarray(Image.open(path).convert("L"), np.float32)[::BLOCK, ::BLOCK] / (16 * LEVEL))[None]


def train(directory):
    """Trains, quantizes, reports and writes the bundle and the demo's pictures."""
    x_train, x_test, y_train, y_test = split()
    model = network(fit(x_train, y_train))
    golden_numbers = range(DEMO_PICTURES, DEMO_PICTURES + GOLDEN_PICTURES)
    before, main, others = forms.demo_forms("meter-digits", model, x_train, Answers(x_test, "classification", y_test),
                                            x_test[list(golden_numbers)])
    for i in range(DEMO_PICTURES):
        save_picture(directory / "demo" / f"{i:02}-digit-{y_test[i]}.png", x_test[i])
    sections = {
        "": {
            "format": 1, "name": "meter-digits", "version": "1.0.0", "licence": "Apache-2.0 OR MIT",
            "description": "Reads one digit of a meter from a small picture.",
            "source": "digits of the PyPI package scikit-learn 1.9.1, BSD-3-Clause; originally UCI Optical Recognition of "
                      "Handwritten Digits (E. Alpaydin, C. Kaynak), CC BY 4.0",
            "task": "classification",
        },
        "input": {"name": "x", "shape": [1, 1, 8, 8], "type": "f32"},
        "output": {"name": "probabilities", "shape": [1, 10]},
        "quantization": {"form": "weight-int8-per-channel", "float_accuracy": round(before, 4), "accuracy": round(main.quality, 4)},
        "image": {"width": 8, "height": 8, "channels": "gray", "layout": "nchw", "resize": "bilinear",
                  "scale": 1 / (16 * LEVEL), "mean": [0.0], "std": [1.0]},
        "classification": {"labels": [str(d) for d in range(10)], "scores": "raw", "top": 3},
    }
    golden = []
    for i in golden_numbers:
        file = f"golden/digit-{y_test[i]}-{i}.png"
        save_picture(directory / file, x_test[i])
        output = bundle.run(main.model, load_picture(directory / file)[None])
        golden.append({"name": f"digit {y_test[i]}", "image": file, "expected": bundle.floats(output), "tolerance": 1e-4})
    bundle.write(directory, sections, golden, main.model, [form.alternative() for form in others])


def check(directory):
    """Verifies the committed bundle against its package's data, without training."""
    manifest, model_bytes = bundle.read(directory)
    bundle.check_golden(directory, [load_picture(directory / sample["image"]) for sample in manifest["golden"]])
    _, x_test, _, y_test = split()
    bundle.check_quality(directory, "accuracy", lambda model_bytes: accuracy(model_bytes, x_test, y_test))
    files = sorted((directory / "demo").glob("*.png"))
    right = sum(bundle.run(model_bytes, load_picture(f)[None])[0].argmax() == int(f.stem[-1]) for f in files)
    print(f"meter-digits: {right} of {len(files)} demo pictures read rightly")
    if len(files) != DEMO_PICTURES or right < 0.9 * len(files):
        raise SystemExit("meter-digits: expected 40 demo pictures, nine of ten read rightly")
