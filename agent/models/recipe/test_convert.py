"""The forms of a small model, their numbers, and the bundle that holds them."""

import contextlib
import io
import tempfile
import tomllib
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import bundle
import forms
import recipe
from measure import Answers, engine_tolerance, round_up, tolerance
from prepare import load, tidy
from quantize import finish
from refusals import refusals
from static_int8 import Seen, calibrate, find_layers, integers, quantize

HEAD = """# The author's words stay.
format = 1
name = "small"
version = "1"
licence = "none"
task = "classification"

[image]
width = 8
height = 8
channels = "rgb"
layout = "nchw"
resize = "exact"
scale = 1.0
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]

[classification]
labels = ["a", "b", "c"]
scores = "raw"
top = 1
"""
ALL = [forms.NONE, forms.WEIGHT, forms.QOPERATOR, forms.QDQ]


def small(automatic=False):
    """Convolution, depthwise convolution with Clip, pooling, a dense layer, Softmax."""
    rng = np.random.default_rng(3)

    def normal(*shape):
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))

    weights = {"k1": normal(8, 3, 3, 3), "c1": rng.standard_normal(8) * 0.1, "k2": normal(8, 1, 3, 3), "zero": 0.0, "six": 6.0,
               "w": normal(3, 8 * 4).T * 2, "b": rng.standard_normal(3) * 0.1}
    pads = {"auto_pad": "SAME_UPPER"} if automatic else {"pads": [0, 0, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "k1", "c1"], ["a1"], kernel_shape=[3, 3], strides=[2, 2], **pads),
        helper.make_node("Relu", ["a1"], ["h1"]),
        helper.make_node("Conv", ["h1", "k2"], ["a2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Clip", ["a2", "zero", "six"], ["h2"]),
        helper.make_node("MaxPool", ["h2"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["m"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return finish(nodes, weights, [("x", [1, 3, 8, 8])], [("probabilities", [1, 3])], "small")


def inputs(count, seed=1):
    return np.random.default_rng(seed).random((count, 3, 8, 8), np.float32)


def static(model, x, form=forms.QOPERATOR):
    return quantize(model, calibrate(model, x), form)[0]


class Forms(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = small()
        cls.made, cls.left = forms.make(cls.model, ALL, inputs(200))
        cls.x = inputs(100, seed=2)
        cls.floats = bundle.run(cls.model.SerializeToString(), cls.x)

    def test_each_form_answers_near_the_float_model(self):
        self.assertEqual(self.left, [])
        for name, bound in ((forms.NONE, 0), (forms.WEIGHT, 0.01), (forms.QOPERATOR, 0.03), (forms.QDQ, 0.03)):
            outputs = bundle.run(self.made[name], self.x)
            self.assertLessEqual(np.abs(outputs - self.floats).max(), bound, name)
            self.assertGreaterEqual((outputs.argmax(1) == self.floats.argmax(1)).mean(), 0.95, name)

    def test_both_static_forms_say_the_same(self):
        one, other = (bundle.run(self.made[name], self.x) for name in (forms.QOPERATOR, forms.QDQ))
        self.assertLess(np.abs(one - other).max(), 0.01)

    def test_qoperator_is_standard_and_int8_on_both_sides(self):
        model = onnx.ModelProto.FromString(self.made[forms.QOPERATOR])
        self.assertEqual([(o.domain, o.version) for o in model.opset_import], [("", 13)])
        self.assertEqual([node.op_type for node in model.graph.node],
                         ["QuantizeLinear", "QLinearConv", "QLinearConv", "MaxPool", "Flatten", "Reshape", "QLinearConv",
                          "Reshape", "DequantizeLinear", "Softmax"])
        self.assertEqual(len(model.graph.value_info), 0)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in (node for node in model.graph.node if node.op_type == "QLinearConv"):
            self.assertNotIn("auto_pad", [a.name for a in node.attribute])
            for at in (2, 3, 5, 7):
                self.assertEqual(constants[node.input[at]].data_type, TensorProto.INT8)
            weight, scales, zeros = (numpy_helper.to_array(constants[node.input[at]]) for at in (3, 4, 5))
            self.assertEqual((weight.ndim, scales.shape, zeros.shape), (4, (len(weight),), (len(weight),)))
            self.assertFalse(zeros.any())
            self.assertGreaterEqual(weight.min(), -127)

    def test_softmax_stays_float_and_nothing_is_refused(self):
        for name, model_bytes in self.made.items():
            model = onnx.ModelProto.FromString(model_bytes)
            self.assertEqual(refusals(model), [], name)
            self.assertEqual(model.graph.node[-1].op_type, "Softmax")

    def test_the_same_inputs_give_the_same_bytes(self):
        self.assertEqual(forms.make(small(), ALL, inputs(200))[0], self.made)

    def test_automatic_pads_become_numbers(self):
        automatic = static(small(automatic=True), inputs(50))
        explicit = static(small(), inputs(50))
        self.assertEqual(automatic.SerializeToString(deterministic=True), explicit.SerializeToString(deterministic=True))


class Layers(unittest.TestCase):
    def test_a_dense_layer_of_matmul_and_add_feeds_the_next_without_reshapes(self):
        rng = np.random.default_rng(5)
        weights = {"w1": rng.standard_normal((6, 5)), "b1": rng.standard_normal((1, 5)), "w2": rng.standard_normal((4, 5)),
                   "b2": rng.standard_normal(1)}
        nodes = [helper.make_node("MatMul", ["x", "w1"], ["m"]), helper.make_node("Add", ["b1", "m"], ["a"]),
                 helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], transB=1, alpha=0.5)]
        model = finish(nodes, weights, [("x", [1, 6])], [("y", [1, 4])], "dense")
        x = rng.standard_normal((300, 6)).astype(np.float32)
        made = static(model, x)
        self.assertEqual([node.op_type for node in made.graph.node],
                         ["QuantizeLinear", "Reshape", "QLinearConv", "QLinearConv", "Reshape", "DequantizeLinear"])
        floats = bundle.run(model.SerializeToString(), x)
        self.assertLess(np.abs(bundle.run(made.SerializeToString(), x) - floats).max(), 0.03 * np.abs(floats).max())

    def test_what_follows_softmax_stays_float(self):
        rng = np.random.default_rng(5)
        nodes = [helper.make_node("Gemm", ["x", "w1"], ["g"]), helper.make_node("Softmax", ["g"], ["s"], axis=1),
                 helper.make_node("Gemm", ["s", "w1"], ["y"])]
        model = finish(nodes, {"w1": rng.standard_normal((6, 6))}, [("x", [1, 6])], [("y", [1, 6])], "attention")
        x = rng.standard_normal((20, 6)).astype(np.float32)
        layers, left = find_layers(model, calibrate(model, x))
        self.assertEqual(([layer.out for layer in layers], left), (["g"], [("y", "it follows Softmax, which stays float")]))
        self.assertEqual(refusals(static(model, x)), [])

    def test_a_clip_that_leaves_zero_out_is_not_fused(self):
        weights = {"w": np.eye(4), "low": 1.0, "high": 3.0}
        nodes = [helper.make_node("Gemm", ["x", "w"], ["g"]), helper.make_node("Clip", ["g", "low", "high"], ["y"])]
        model = finish(nodes, weights, [("x", [1, 4])], [("y", [1, 4])], "clip")
        x = np.random.default_rng(5).uniform(-5, 5, (50, 4)).astype(np.float32)
        for form in (forms.QOPERATOR, forms.QDQ):
            outputs = bundle.run(static(model, x, form).SerializeToString(), x)
            self.assertEqual((outputs.min(), outputs.max()), (1, 3))

    def test_batch_normalisation_goes_into_the_filters(self):
        rng = np.random.default_rng(5)
        parts = {"k": rng.standard_normal((4, 3, 1, 1)), "g": rng.random(4) + 0.5, "h": rng.random(4), "mean": rng.random(4),
                 "variance": rng.random(4) + 0.5}
        nodes = [helper.make_node("Conv", ["x", "k"], ["a"]), helper.make_node("BatchNormalization", ["a", *list(parts)[1:]], ["y"])]
        model = finish(nodes, parts, [("x", [1, 3, 4, 4])], [("y", [1, 4, 4, 4])], "normalised")
        made, x = tidy(model), rng.random((3, 3, 4, 4), np.float32)
        self.assertEqual([node.op_type for node in made.graph.node], ["Conv"])
        one, other = (bundle.run(m.SerializeToString(), x) for m in (model, made))
        self.assertLess(np.abs(one - other).max(), 1e-5)

    def test_a_bias_beside_a_filter_of_nothing_fits_int32(self):
        layer = mock.Mock(weight=np.zeros((2, 3, 1, 1), np.float32), bias=np.array([5, -5], np.float32))
        _, scale, bias = integers(layer, np.float32(0.01))
        self.assertTrue((np.abs(bias.astype(np.int64)) <= (1 << 30) + 64).all(), bias)
        self.assertLess(np.abs(bias * 0.01 * scale.astype(np.float64) - layer.bias).max(), 1e-3)

    def test_ranges_hold_zero_exactly(self):
        for low, high in ((0, 6), (-1, 1), (-3, 0.5), (0, 0)):
            scale, zero = Seen(low, high).scale()
            self.assertTrue(-128 <= zero <= 127)
            self.assertLessEqual(abs((-128 - int(zero)) * scale - low), scale)
        self.assertEqual(Seen(0, 1.00001).scale(), Seen(0, 1.00002).scale())


class Convert(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        model = small()
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
        onnx.save(model, self.path / "small.onnx")
        (self.path / "head.toml").write_text(HEAD, encoding="utf-8")
        x = inputs(120)
        y = bundle.run(small().SerializeToString(), x).argmax(1)
        np.savez(self.path / "inputs.npz", x=x, y=y)

    def run_it(self, *more, data="inputs.npz"):
        """What is printed; the text of a refusal last."""
        printed = io.StringIO()
        files = [str(self.path / name) for name in ("small.onnx", data)]
        with contextlib.redirect_stdout(printed):
            try:
                recipe.main(["convert", *files, *more])
            except SystemExit as stop:
                print(stop)
        return printed.getvalue()

    def bundle(self, *more):
        where = ["--manifest", str(self.path / "head.toml"), "--bundle", str(self.path / "bundle")]
        return self.run_it("--batch", "1", *where, *more)

    def test_a_bundle_holds_the_forms_and_their_tolerances(self):
        self.bundle("--golden", "3")
        text = (self.path / "bundle/model.toml").read_text(encoding="utf-8")
        self.assertTrue(text.startswith(HEAD.rstrip()))
        manifest = tomllib.loads(text)
        self.assertEqual(manifest["input"], {"name": "x", "shape": [1, 3, 8, 8], "type": "f32"})
        self.assertEqual(manifest["output"], {"name": "probabilities", "shape": [1, 3]})
        self.assertEqual(manifest["quantization"]["form"], forms.WEIGHT)
        self.assertEqual(manifest["quantization"]["float_accuracy"], 1.0)
        self.assertEqual([(a["file"], a["form"]) for a in manifest["alternative"]],
                         [("model-qoperator.onnx", forms.QOPERATOR), ("model-qdq.onnx", forms.QDQ)])
        golden = manifest["golden"]
        x = np.stack([np.frombuffer((self.path / "bundle" / g["tensor"]).read_bytes(), "<f4").reshape(3, 8, 8) for g in golden])
        self.assertEqual(len(golden), 3)
        expected = np.array([g["expected"] for g in golden], np.float32)
        self.assertTrue(all(g["tolerance"] == 1e-4 for g in golden))
        for alternative in manifest["alternative"]:
            outputs = bundle.run((self.path / "bundle" / alternative["file"]).read_bytes(), x)
            difference = np.abs(outputs - expected).max()
            self.assertGreater(difference, 1e-4)
            self.assertLess(difference, alternative["tolerance"])
            self.assertLess(alternative["tolerance"], 1.5 * difference * 1.1 + 2e-4)
            self.assertGreaterEqual(alternative["accuracy"], 0.99)
        with contextlib.redirect_stdout(io.StringIO()):
            bundle.check_golden(self.path / "bundle", x)

    def test_forms_that_are_no_longer_asked_for_go(self):
        self.bundle()
        self.bundle("--main", "none", "--forms", forms.QOPERATOR)
        found = sorted(path.name for path in (self.path / "bundle").glob("*.onnx"))
        self.assertEqual(found, ["model-qoperator.onnx", "model.onnx"])
        self.assertEqual((self.path / "bundle/model.onnx").stat().st_size,
                         len(load(self.path / "small.onnx", 1).SerializeToString()))

    def spoil(self):
        """Calibration inputs that are nearly nothing: the int8 ranges saturate on real ones."""
        np.savez(self.path / "dark.npz", x=inputs(20) * 1e-3, task="classification")
        return ["--test", str(self.path / "inputs.npz")]

    def test_a_form_that_loses_more_than_a_point_is_left_out(self):
        where = ["--manifest", str(self.path / "head.toml"), "--bundle", str(self.path / "bundle")]
        printed = self.run_it("--batch", "1", *where, *self.spoil(), data="dark.npz")
        self.assertRegex(printed, r"qoperator-int8: left out: it loses \d+\.\d\d points of accuracy \(1\.0000 to 0\.\d+\), more than 1 point")
        self.assertIn("qdq-int8: left out", printed)
        self.assertEqual([path.name for path in (self.path / "bundle").glob("*.onnx")], ["model.onnx"])
        self.assertNotIn("alternative", tomllib.loads((self.path / "bundle/model.toml").read_text(encoding="utf-8")))

    def test_a_main_form_that_loses_more_than_a_point_ends_it(self):
        where = ["--manifest", str(self.path / "head.toml"), "--bundle", str(self.path / "bundle")]
        printed = self.run_it("--batch", "1", "--main", forms.QOPERATOR, *where, *self.spoil(), data="dark.npz")
        self.assertIn("qoperator-int8 cannot be model.onnx: it loses", printed)
        self.assertFalse((self.path / "bundle").exists())

    def test_agreement_decides_without_labels(self):
        np.savez(self.path / "plain.npz", x=inputs(50, seed=9))
        test = ["--batch", "1", "--task", "classification", "--test", str(self.path / "plain.npz")]
        self.spoil()
        printed = self.run_it(*test, data="dark.npz")
        self.assertRegex(printed, r"qoperator-int8: left out: [\d.]+% of its answers are the float model's, expected at least 99%")
        self.assertNotIn("left out", self.run_it(*test, "--agreement-min", "0", data="dark.npz"))

    def test_refused_inputs_name_the_field(self):
        x = inputs(4)
        cases = [
            (dict(x=x[:, :2], task="classification"), "`x` has the shape [4, 2, 8, 8]; expected [n, 3, 8, 8]"),
            (dict(z=x), "arrays ['z']; expected `x`"),
            (dict(x=x), "task None; expected one of classification, anomaly, detection"),
            (dict(x=x * np.nan, task="classification"), "`x` holds values that are not finite"),
            (dict(x=x, y=np.zeros(3, int), task="classification"), "`y` is int64 [3]; expected 4 integers"),
            (dict(x=x, y=np.zeros(4, int), task="anomaly"), "expected 0 (normal) and 1 (anomalous), both"),
        ]
        for arrays, expected in cases:
            np.savez(self.path / "case.npz", **arrays)
            self.assertIn(expected, self.run_it("--batch", "1", data="case.npz"))
        self.assertIn("pass --batch 1", self.run_it())
        self.assertIn("expected both or neither", self.run_it("--batch", "1", "--bundle", str(self.path)))
        (self.path / "head.toml").write_text(HEAD + "[[golden]]\n", encoding="utf-8")
        self.assertIn("sections ['golden']; expected none of", self.bundle())

    def test_inspect_prints_its_verdict(self):
        for more, code, text in (([], 1, "convert refuses: input `x`: the batch is symbolic (N)"),
                                 (["--batch", "1"], 0, "nothing is refused")):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), self.assertRaises(SystemExit) as stop:
                recipe.main(["inspect", str(self.path / "small.onnx"), *more])
            self.assertEqual(stop.exception.code, code)
            self.assertIn(text, printed.getvalue())
            self.assertIn("operators: Clip 1, Conv 2, Flatten 1, Gemm 1", printed.getvalue())


class Measures(unittest.TestCase):
    def test_anomalies(self):
        x = np.zeros((4, 2), np.float32)
        answers = Answers(x, "anomaly", np.array([0, 0, 1, 1]))
        scores = np.array([[1], [2], [3], [4]], np.float32)
        self.assertEqual(answers.quality(scores), 1.0)
        self.assertEqual(answers.quality(scores[[2, 1, 0, 3]]), 0.5)
        self.assertEqual(answers.quality(np.repeat(scores, 2, axis=1)), 1.0)
        self.assertIsNone(answers.agreement(scores, scores))
        answers.raise_at = 2.5
        self.assertEqual(answers.agreement(scores, scores[[2, 1, 0, 3]]), 0.5)
        with self.assertRaisesRegex(ValueError, "answers with 1 value or 2, found 3"):
            answers.scores(np.zeros((4, 3)))

    def test_detections_count_cells_where_either_finds_something(self):
        one = np.zeros((1, 7, 1, 3), np.float32)
        one[0, 0], one[0, 5, 0] = 0.9, [0.9, 0.9, 0]
        other = one.copy()
        other[0, 5, 0, 1], other[0, 6, 0, 1] = 0, 0.9
        self.assertEqual(Answers(np.zeros((1, 1)), "detection").agreement(one, other), 0.5)

    def test_tolerances(self):
        self.assertEqual([round_up(v) for v in (0.0123, 0.121, 6.3, 0.5)], [0.013, 0.13, 6.3, 0.5])
        self.assertEqual([engine_tolerance(np.array([v])) for v in (0.5, -30)], [1e-4, 0.003])
        self.assertEqual(tolerance(np.array([1.0]), np.array([1.1])), 0.16)


if __name__ == "__main__":
    unittest.main()
