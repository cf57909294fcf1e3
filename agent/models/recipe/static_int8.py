"""Static int8: activations per tensor, weights per output channel, both int8, from the ranges that calibration inputs gave.

Conv, and MatMul or Gemm with constant weights, are quantized, nothing else: what lies between them is float, Softmax above
all. Two ways to write the same numbers down:

- QOperator: QLinearConv, as the agent's own kernels take it (shared/runtime/src/engine/tract/quantized.rs): int8 on both
  sides, filters without a zero point, explicit pads, Relu and Clip by the output's range. A dense layer becomes a 1 x 1
  convolution. Operators that only move values run on int8.
- QDQ: the float operators between QuantizeLinear and DequantizeLinear.

Ranges are rounded to four digits, so that the last bits of another processor's float sums do not change the file.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

import bundle
from prepare import arrays, consumers, prune, real_inputs, used_names
from refusals import MIXING, Wiring, node_name

# Calibration looks at this many inputs, evenly spaced.
CALIBRATION_MAX = 512
# Longest window of shared/kernels, in elements.
WINDOW_MAX = 1 << 16
# A bias leaves room for the sum of a window in int32.
BIAS_MAX = 1 << 30
DIGITS = 4
MOVING = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")
CLIPPING = ("Relu", "Clip")


@dataclass
class Seen:
    """What calibration saw of a value."""
    low: float = 0.0
    high: float = 0.0
    shape: tuple = ()

    def scale(self):
        """(scale, zero point) of int8."""
        low, high = (float(f"{v:.{DIGITS}g}") for v in (self.low, self.high))
        scale = np.float32((high - low) / 255) if high > low else np.float32(1)
        if not np.isfinite(scale) or scale == 0:
            scale = np.float32(1)
        return scale, np.int8(np.clip(np.rint(-128 - low / scale), -128, 127))


def calibrate(model, inputs):
    """Value -> Seen, over float runs of the inputs [n, ...]."""
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    name = real_inputs(model.graph)[0].name
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm", "Add", *CLIPPING)]
    constants = arrays(model.graph)
    values = sorted({v for node in layers for v in [*node.input[:1], *node.output]} - {name} - set(constants))
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, None) for v in values)
    seen = {v: Seen() for v in [name, *values]}
    if not values:
        return seen
    runtime = bundle.session(probe.SerializeToString())
    chosen = np.linspace(0, len(inputs) - 1, min(len(inputs), CALIBRATION_MAX)).astype(int)
    for x in (inputs[i][None].astype(np.float32) for i in chosen):
        for value, array in zip([name, *values], [x, *runtime.run(None, {name: x})], strict=True):
            if not np.isfinite(array).all():
                raise ValueError(f"value `{value}` is not finite on a calibration input")
            one = seen[value]
            one.low, one.high = min(one.low, float(array.min())), max(one.high, float(array.max()))
            one.shape = array.shape
    return seen


@dataclass
class Layer:
    """A Conv, or a dense layer, with what is fused into it."""
    x: str
    out: str
    weight: np.ndarray
    bias: np.ndarray | None
    conv: dict = field(default_factory=dict)
    relu: onnx.NodeProto | None = None
    nodes: list = field(default_factory=list)


def find_layers(model, seen):
    """(layers, [(node, why it stays float)])."""
    graph = model.graph
    users, constants, wiring = consumers(graph), arrays(graph), Wiring(graph)
    layers, left = [], []
    outputs = set()
    for node in graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        try:
            layer = as_layer(node, constants, seen)
        except ValueError as why:
            left.append((node_name(node), str(why)))
            continue
        mixing = behind_mixing(wiring, layer.x, outputs)
        if mixing:
            left.append((node_name(node), f"it follows {mixing}, which stays float"))
            continue
        fuse(layer, users, constants)
        outputs.add(layer.out)
        layers.append(layer)
    return layers, left


def behind_mixing(wiring, value, outputs):
    """The Softmax or its like that a value comes from, up to the next layer."""
    for node in wiring.chain(value):
        if node.output[0] in outputs:
            return None
        if node.op_type in MIXING:
            return node.op_type
    return None


def attributes(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def as_layer(node, constants, seen):
    """The layer of a node; ValueError says why it is none."""
    weight = constants.get(node.input[1])
    bias = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if weight is None or node.input[0] in constants or (bias is None and len(node.input) > 2 and node.input[2]):
        raise ValueError("its weights are computed")
    if weight.dtype != np.float32:
        raise ValueError(f"its weights are {weight.dtype}")
    shape, given = seen[node.input[0]].shape, attributes(node)
    conv = {}
    if node.op_type == "Conv":
        if weight.ndim != 4:
            raise ValueError(f"it has {weight.ndim - 2} dimensions, int8 convolutions have 2")
        conv = explicit(given, weight.shape, shape)
    else:
        if len(shape) != 2 or weight.ndim != 2:
            raise ValueError(f"its input has the shape {list(shape)}, int8 takes [1, n]")
        if given.get("transA"):
            raise ValueError("its input is transposed")
        weight = (weight if given.get("transB") else weight.T) * np.float32(given.get("alpha", 1.0))
        if bias is not None:
            bias = np.broadcast_to(bias, (1, len(weight))).ravel() * np.float32(given.get("beta", 1.0))
    if weight[0].size > WINDOW_MAX:
        raise ValueError(f"a filter has {weight[0].size} elements, at most {WINDOW_MAX} fit")
    return Layer(node.input[0], node.output[0], weight, bias, conv, nodes=[node])


def explicit(given, weight, shape):
    """A convolution's attributes with its pads as numbers."""
    kernel, strides = list(weight[2:]), list(given.get("strides", [1, 1]))
    dilations, pads = list(given.get("dilations", [1, 1])), list(given.get("pads", [0] * 4))
    automatic = given.get("auto_pad", b"NOTSET").decode()
    if automatic == "VALID":
        pads = [0] * 4
    elif automatic in ("SAME_UPPER", "SAME_LOWER"):
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        totals = [max((-(-n // s) - 1) * s + span - n, 0) for n, s, span in zip(shape[2:], strides, spans, strict=True)]
        less = [total // 2 for total in totals]
        more = [total - half for total, half in zip(totals, less, strict=True)]
        pads = less + more if automatic == "SAME_UPPER" else more + less
    return {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads, "group": given.get("group", 1)}


def fuse(layer, users, constants):
    """Takes the bias of an Add, then a Relu or Clip, each where it alone reads what comes before it."""
    def only():
        after = users.get(layer.out, [])
        return after[0] if len(after) == 1 and after[0] is not None else None

    after = only()
    if after is not None and after.op_type == "Add" and not layer.conv and layer.bias is None:
        name = after.input[1] if after.input[0] == layer.out else after.input[0]
        addend = constants.get(name)
        if addend is not None and addend.size == len(layer.weight) and addend.shape[-1] == addend.size and addend.ndim <= 2:
            layer.bias, layer.out = addend.ravel(), after.output[0]
            layer.nodes.append(after)
            after = only()
    if after is not None and after.input[0] == layer.out and clips_around_zero(after, constants):
        layer.relu, layer.out = after, after.output[0]
        layer.nodes.append(after)


def clips_around_zero(node, constants):
    """A Relu, or a Clip whose bounds are known and hold zero: int8's own ends do its work."""
    if node.op_type == "Relu":
        return True
    names = [*node.input[1:], "", ""][:2]
    low, high = (constants.get(name, np.nan if name else sign * np.inf) for name, sign in zip(names, (-1, 1), strict=True))
    return node.op_type == "Clip" and bool(low <= 0 <= high)


def integers(layer, x_scale):
    """(weights int8, their scales, bias int32) for an input's scale."""
    rows = layer.weight.reshape(len(layer.weight), -1)
    scale = np.maximum(np.abs(rows).max(axis=1), 1e-8).astype(np.float32) / np.float32(127)
    if layer.bias is not None:
        # A filter of nearly nothing beside a real bias: the bias decides.
        scale = np.maximum(scale, (np.abs(layer.bias).astype(np.float64) / (float(x_scale) * BIAS_MAX)).astype(np.float32))
    stored = np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8).reshape(layer.weight.shape)
    bias = np.zeros(len(scale)) if layer.bias is None else layer.bias.astype(np.float64) / (float(x_scale) * scale.astype(np.float64))
    return stored, scale, np.rint(bias).astype(np.int32)


class Writer:
    """Writes the graph anew, in its order. A value may stand there as float, as int8, and as int8 `[1, n, 1, 1]`."""

    def __init__(self, model, seen, form):
        self.model = onnx.ModelProto.FromString(model.SerializeToString())
        self.seen, self.form, self.nodes, self.tensors = seen, form, [], {}
        constants = {tensor.name for tensor in model.graph.initializer}
        self.floats = {value.name: value.name for value in model.graph.input} | {name: name for name in constants}
        self.int8, self.columns, self.back = {}, {}, {}
        # Exporters' names are long, and each would stand here several times: what is new is numbered.
        taken = [*constants, *(name for node in model.graph.node for name in (*node.input, *node.output))]
        self.prefix = "q"
        while any(name.startswith(self.prefix) for name in taken):
            self.prefix += "_"
        self.numbers = {}

    def short(self, value):
        """A value's name in what is new."""
        return f"{self.prefix}{self.numbers.setdefault(value, len(self.numbers))}"

    def constant(self, name, array):
        self.tensors[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def node(self, operator, inputs, output, **given):
        self.nodes.append(helper.make_node(operator, inputs, [output], **given))
        return output

    def parameters(self, value):
        """Names of a value's scale and zero point."""
        scale, zero = self.seen[value].scale()
        name = self.short(value)
        return [self.constant(f"{name}_scale", scale), self.constant(f"{name}_zero", zero)]

    def as_int8(self, value):
        """(name, parameters) of a value in int8."""
        if value not in self.int8:
            parameters = self.parameters(value)
            self.int8[value] = (self.node("QuantizeLinear", [self.floats[value], *parameters], self.short(value)), parameters)
        return self.int8[value]

    def as_float(self, value):
        """Has a value stand as float, under its own name."""
        if value not in self.floats and value in self.int8:
            name, parameters = self.int8[value]
            self.floats[value] = self.node("DequantizeLinear", [name, *parameters], value)

    def other(self, node):
        """A node that is no layer."""
        source = node.input[0] if node.input else ""
        is_moving = node.op_type in MOVING and source in self.int8 and len(node.output) == 1
        if is_moving and (node.op_type != "MaxPool" or self.form == "qoperator-int8"):
            name, parameters = self.int8[source]
            moved = onnx.NodeProto.FromString(node.SerializeToString())
            moved.input[0], moved.output[0] = name, self.short(node.output[0])
            self.nodes.append(moved)
            self.int8[node.output[0]] = (moved.output[0], parameters)
            return
        for name in sorted(used_names(node)):
            self.as_float(name)
        self.nodes.append(node)
        self.floats |= {name: name for name in node.output}

    def weights(self, layer, x_parameters):
        """The weights' and the bias' integers, and the scales' names."""
        x_scale = numpy_helper.to_array(self.tensors[x_parameters[0]])
        stored, scale, bias = integers(layer, x_scale)
        name = self.short(layer.out)
        scales = [self.constant(f"{name}_weight_scale", scale),
                  self.constant(f"{self.prefix}_zeros{len(scale)}", np.zeros(len(scale), np.int8))]
        return name, stored, scales, bias, (x_scale * scale).astype(np.float32)

    def qoperator(self, layer):
        """QLinearConv; a dense layer as one of 1 x 1."""
        x, x_parameters = self.as_int8(layer.x)
        name, stored, scales, bias, _ = self.weights(layer, x_parameters)
        conv = layer.conv or {"kernel_shape": [1, 1]}
        if not layer.conv:
            stored = stored.reshape(*stored.shape, 1, 1)
            if layer.x in self.columns:
                x = self.columns[layer.x]
            else:
                shape = self.constant(f"{name}_column", np.array([1, stored.shape[1], 1, 1], np.int64))
                x = self.node("Reshape", [x, shape], f"{name}_column_in")
        weight = self.constant(f"{name}_weight", stored)
        inputs = [x, *x_parameters, weight, *scales, *(parameters := self.parameters(layer.out))]
        if layer.bias is not None:
            inputs.append(self.constant(f"{name}_bias", bias))
        out = self.node("QLinearConv", inputs, name if layer.conv else f"{name}_column_out", **conv)
        if not layer.conv:
            self.columns[layer.out] = out
            shape = self.constant(f"{name}_row", np.array(self.seen[layer.out].shape, np.int64))
            out = self.node("Reshape", [out, shape], name)
        self.int8[layer.out] = (out, parameters)

    def qdq(self, layer):
        """The float operator between DequantizeLinear and QuantizeLinear."""
        x, x_parameters = self.as_int8(layer.x)
        if layer.x not in self.back:
            self.back[layer.x] = self.node("DequantizeLinear", [x, *x_parameters], f"{self.short(layer.x)}_back")
        name, stored, scales, bias, bias_scale = self.weights(layer, x_parameters)
        weight = self.constant(f"{name}_weight", stored if layer.conv else np.ascontiguousarray(stored.T))
        axis = 0 if layer.conv else 1
        inputs = [self.back[layer.x], self.node("DequantizeLinear", [weight, *scales], f"{name}_weight_float", axis=axis)]
        if layer.bias is not None:
            parts = [self.constant(f"{name}_bias", bias), self.constant(f"{name}_bias_scale", bias_scale)]
            inputs.append(self.node("DequantizeLinear", parts, f"{name}_bias_float", axis=0))
        value = self.node("Conv" if layer.conv else "Gemm", inputs, f"{name}_float", **layer.conv)
        if layer.relu is not None:
            value = self.node(layer.relu.op_type, [value, *layer.relu.input[1:]], f"{name}_clipped", **attributes(layer.relu))
        parameters = self.parameters(layer.out)
        self.int8[layer.out] = (self.node("QuantizeLinear", [value, *parameters], name), parameters)

    def finish(self):
        """The model."""
        graph = self.model.graph
        for value in graph.output:
            self.as_float(value.name)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.tensors.values())
        prune(graph)
        onnx.checker.check_model(self.model)
        return self.model


def quantize(model, seen, form):
    """(the model in `qoperator-int8` or `qdq-int8`, [(node, why it stays float)])."""
    layers, left = find_layers(model, seen)
    writer = Writer(model, seen, form)
    first = {id_of(layer.nodes[0]): layer for layer in layers}
    fused = {id_of(node) for layer in layers for node in layer.nodes[1:]}
    for node in model.graph.node:
        layer = first.get(id_of(node))
        if layer is not None:
            writer.qoperator(layer) if form == "qoperator-int8" else writer.qdq(layer)
        elif id_of(node) not in fused:
            writer.other(node)
    return writer.finish(), left


def id_of(node):
    """A node by the value that it alone makes."""
    return node.output[0]
