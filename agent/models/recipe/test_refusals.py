"""What is refused, and that the words are the agent's."""

import tempfile
import unittest
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import refusals
from prepare import Refused, load, pin, shown

RUNTIME = Path(__file__).resolve().parents[3] / "shared/runtime/src"
SCALARS = {"s": np.float32(0.1), "u8": np.uint8(0), "i8": np.int8(0), "weight": np.zeros(4, np.int8)}


def model(nodes, kind=TensorProto.FLOAT, shape=(1, 4), functions=()):
    """A graph of the nodes, from `x`; unchecked, for what no checker lets pass is tested too."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in SCALARS.items()]
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    graph = helper.make_graph(nodes, "test", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors)
    return helper.make_model(graph, functions=functions, opset_imports=[helper.make_opsetid("", 13)])


def chain(before, middle, after):
    """x -> DequantizeLinear -> the middle -> QuantizeLinear, with the zero points."""
    nodes, value = [helper.make_node("DequantizeLinear", ["x", "s", *before], ["v"])], "v"
    for i, operator in enumerate(middle):
        nodes.append(helper.make_node(operator, [value], [f"v{i}"]))
        value = f"v{i}"
    return [*nodes, helper.make_node("QuantizeLinear", [value, "s", *after], ["y"])]


class Refusals(unittest.TestCase):
    def check(self, nodes, *parts, **given):
        found = refusals.refusals(model(nodes, **given))
        self.assertEqual(len(found), 1 if parts else 0, found)
        for part in parts:
            self.assertIn(part, found[0])

    def test_words_are_the_agents(self):
        source = "".join(path.read_text(encoding="utf-8") for path in sorted(RUNTIME.rglob("*.rs")))
        for words in refusals.INSTEAD:
            self.assertTrue(f'"{words}"' in source, f"the agent says it otherwise: {words}")
        self.assertTrue(f"DEPTH_MAX: usize = {refusals.DEPTH_MAX};" in source, "DEPTH_MAX")
        self.assertTrue(f"CHAIN_MAX: usize = {refusals.CHAIN_MAX};" in source, "CHAIN_MAX")
        for name, operators in (("MIXING", refusals.MIXING), ("RECURRENT", refusals.RECURRENT)):
            listed = ", ".join(f"{chr(34)}{o}{chr(34)}" for o in operators)
            self.assertTrue(f"{name}: &[&str] = &[{listed}];" in source, name)

    def test_softmax_between_dequantize_and_quantize(self):
        i8 = ["i8"]
        self.check(chain(i8, ["Softmax"], i8), "`v0`: Softmax between", "keep Softmax in float", "instead: hand the float model")
        self.check(chain(i8, ["Relu", "LogSoftmax", "Relu"], i8), "`v1`: LogSoftmax between")
        self.check(chain(i8, ["Softmax"], i8)[:-1])
        self.check(chain(i8, ["Relu"], i8))

    def test_requantization_between_two_types(self):
        self.check(chain(["u8"], [], ["i8"]), "`y`: requantization from uint8 to int8", "int8 throughout")
        self.check(chain(["i8"], ["Relu"], ["u8"]), "from int8 to uint8")
        self.check(chain(["i8"], [], []), "from int8 to uint8")
        self.check(chain([], [], ["i8"]), "from uint8 to int8", kind=TensorProto.UINT8)
        # An operator with a constant ends what the engine folds.
        added = chain(["u8"], ["Add"], ["i8"])
        added[1].input.append("s")
        self.check(added)
        self.check([helper.make_node("DequantizeLinear", ["weight", "s", "i8"], ["w"]),
                    helper.make_node("QuantizeLinear", ["w", "s", "u8"], ["y"])])

    def test_recurrent_layers_run_forward(self):
        for operator in refusals.RECURRENT:
            self.check([helper.make_node(operator, ["x"], ["y"])])
            self.check([helper.make_node(operator, ["x"], ["y"], direction="forward")])
            for direction in ("reverse", "bidirectional"):
                self.check([helper.make_node(operator, ["x"], ["y"], direction=direction)],
                           f"{operator} with direction {direction}", "expected forward", "reverse the window's rows")

    def test_foreign_operators_also_in_subgraphs(self):
        foreign = helper.make_node("QGemm", ["x"], ["y"], domain="com.microsoft")
        self.check([foreign], "operator QGemm is of domain com.microsoft", "recipe.py convert")
        inner = helper.make_graph([foreign], "inner", [], [])
        self.check([helper.make_node("If", ["x"], ["y"], then_branch=inner)], "QGemm")

    def test_functions_external_weights_and_depth(self):
        function = helper.make_function("own", "gelu", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])],
                                        [helper.make_opsetid("", 13)])
        self.check([], "function `gelu`", "inline_local_functions", functions=[function])
        outside = model([])
        outside.graph.initializer[3].data_location = TensorProto.EXTERNAL
        self.assertIn("tensor `weight`: weights in an external file", refusals.refusals(outside)[0])
        graph = helper.make_graph([], "inner", [], [])
        for depth in range(1, refusals.DEPTH_MAX + 2):
            loop = helper.make_node("Loop", ["x"], ["y"], body=graph)
            self.check([loop], *(["deeper than 8"] if depth > refusals.DEPTH_MAX else []))
            graph = helper.make_graph([loop], "inner", [], [])
        self.assertIn("no graph", refusals.refusals(onnx.ModelProto())[0])

    def test_shapes(self):
        nodes = [helper.make_node("Relu", ["x"], ["y"])]

        def found(**given):
            return refusals.shape_refusals(model(nodes, **given))

        self.assertEqual(found(), [])
        self.assertIn("the batch is symbolic (N)", found(shape=("N", 4))[0])
        self.assertIn("pass --batch 1", found(shape=("N", 4))[0])
        self.assertIn("the batch is 8; expected 1", found(shape=(8, 4))[0])
        self.assertIn("symbolic past the batch", found(shape=(1, "width"))[0])
        self.assertIn("no shape", found(shape=())[0])
        self.assertIn("type INT8; expected FLOAT", found(kind=TensorProto.INT8)[0])
        for batch in ("N", None):
            pinned = model(nodes, shape=(batch, 4))
            pinned.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (batch, 4)))
            pin(pinned, 1)
            self.assertEqual(refusals.dimensions(pinned.graph.input[0]), [1, 4])
            self.assertEqual(refusals.dimensions(pinned.graph.output[1]), [1 if batch else "?", 4])
        pinned.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 4)))
        self.assertIn("expected one input", refusals.shape_refusals(pinned)[0])

    def test_files(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "model.onnx"
            path.write_bytes(b"\xff no protobuf")
            with self.assertRaisesRegex(Refused, "model.onnx: no ONNX file"):
                load(path)
            onnx.save(model(chain(["i8"], [], ["i8"])), path)
            with self.assertRaisesRegex(Refused, "quantized already .*expected a float model"):
                load(path)
            onnx.save(model([helper.make_node("Relu", ["x"], ["y"])], shape=("N", 4)), path)
            with self.assertRaisesRegex(Refused, "the batch is symbolic"):
                load(path)
            self.assertEqual(refusals.shape_refusals(load(path, 1)), [])

    def test_long_lists_are_cut(self):
        self.assertEqual(shown(["a"] * 10).count("\n"), 9)
        self.assertTrue(shown(["a"] * 12).endswith("and 2 more"))


if __name__ == "__main__":
    unittest.main()
