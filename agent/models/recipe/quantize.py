"""Weight-only int8 per output channel: what the agent's engine runs at float speed from a quarter of the bytes.

Weights of Conv, MatMul and Gemm become int8 with one scale per output channel and a DequantizeLinear; activations and
Softmax stay float. value_info is dropped, so that no stale shape travels with the file.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Smaller tensors gain nothing from quantization.
WEIGHTS_MIN = 128


def output_axis(node, rank):
    """The axis of a weight that holds output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "MatMul":
        return rank - 1
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1


def quantize_weights(model):
    """Returns a copy of the model with quantized weights."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    dequantize, done = [], set()
    for node in graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        name = node.input[1]
        if name in done or name not in initializers:
            continue
        weight = numpy_helper.to_array(initializers[name])
        if weight.size < WEIGHTS_MIN or weight.dtype != np.float32:
            continue
        axis = output_axis(node, weight.ndim)
        others = tuple(k for k in range(weight.ndim) if k != axis)
        scale = np.maximum(np.abs(weight).max(axis=others), 1e-8).astype(np.float32) / np.float32(127)
        shape = [1] * weight.ndim
        shape[axis] = -1
        stored = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
        zero = np.zeros(len(scale), np.int8)
        parts = {f"{name}_q": stored, f"{name}_s": scale, f"{name}_z": zero}
        graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in parts.items())
        dequantize.append(helper.make_node("DequantizeLinear", list(parts), [name], axis=axis))
        done.add(name)
    kept = [tensor for tensor in graph.initializer if tensor.name not in done]
    nodes = dequantize + list(graph.node)
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def finish(nodes, weights, inputs, outputs, name):
    """Builds and checks a model from nodes and named arrays."""
    tensors = [numpy_helper.from_array(np.asarray(v, np.int64 if np.asarray(v).dtype.kind == "i" else np.float32), k)
               for k, v in weights.items()]
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in inputs + outputs]
    graph = helper.make_graph(nodes, name, info[:len(inputs)], info[len(inputs):], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="muster-recipe")
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model
