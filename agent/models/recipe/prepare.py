"""Makes a float model ready to be quantized: loaded, checked, pinned, and told plainly.

`load` refuses what the agent would; `tidy` leaves one output, no constants as nodes, no stale shapes, and batch
normalisation in the filters before it.
"""

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from refusals import dimensions, real_inputs, refusals, shape_refusals

REFUSALS_MAX = 10
MODEL_BYTES_MAX = 256 << 20
# DequantizeLinear has its axis since 13.
OPSET = 13
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
             "DynamicQuantizeLinear")


class Refused(Exception):
    """Texts that say what is wrong and what to do instead."""


def shown(found):
    """The first refusals, a line each, and how many more there are."""
    more = len(found) - REFUSALS_MAX
    return "\n".join(found[:REFUSALS_MAX] + ([f"and {more} more"] if more > 0 else []))


def read(path):
    """The model as it stands in its file; external weights are not looked for."""
    size = path.stat().st_size
    if size > MODEL_BYTES_MAX:
        raise Refused(f"{path.name}: {size} bytes; expected at most {MODEL_BYTES_MAX}")
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:
        raise Refused(f"{path.name}: no ONNX file ({error})") from error


def load(path, batch=None):
    """A float model that the agent would load, its batch pinned where that was asked for."""
    model = read(path)
    if batch is not None:
        pin(model, batch)
    found = refusals(model) or shape_refusals(model)
    kinds = {node.op_type for node in model.graph.node} & set(QUANTIZED)
    if kinds and not found:
        found = [f"the model is quantized already ({', '.join(sorted(kinds))}); expected a float model: export it before "
                 "its quantization"]
    if found:
        raise Refused(shown(found))
    return model


def pin(model, batch):
    """Gives a symbolic batch its number, at the input and at what carries its name."""
    inputs = real_inputs(model.graph)
    names = {sizes[0] for sizes in map(dimensions, inputs) if sizes and isinstance(sizes[0], str)}
    for value in inputs:
        sizes = dimensions(value)
        if sizes and isinstance(sizes[0], str):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    for value in [*inputs, *model.graph.output]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names - {"?"}:
                dimension.dim_value = batch


def used_names(node):
    """A node's inputs, and what its subgraphs take from outside."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            names |= {name for inside in inner.node for name in used_names(inside)} | {o.name for o in inner.output}
    return names - {""}


def prune(graph):
    """Drops nodes and constants that no output needs."""
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= used_names(node)
            kept.append(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(constants)


def tidy(model, output=None):
    """A copy with one output, told plainly."""
    if next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0) < OPSET:
        model = version_converter.convert_version(model, OPSET)
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    inputs = real_inputs(graph)
    names = [value.name for value in graph.output]
    if output is None and len(names) != 1:
        raise Refused(f"outputs {names}; expected one: name it with --output")
    if output is not None and output not in names:
        raise Refused(f"output `{output}`; expected one of {names}")
    outputs = [value for value in graph.output if value.name == (output or names[0])]
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    hoist_constants(graph)
    fold_batch_normalisation(graph)
    prune(graph)
    standard = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    model.ir_version = max(model.ir_version, 8)
    onnx.checker.check_model(model)
    return model


def hoist_constants(graph):
    """Constant nodes become initialisers."""
    kept = []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
            continue
        tensor = onnx.TensorProto.FromString(value.t.SerializeToString())
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def consumers(graph):
    """Value -> the nodes that use it; an output counts as one more."""
    users = {}
    for node in graph.node:
        for name in used_names(node):
            users.setdefault(name, []).append(node)
    for value in graph.output:
        users.setdefault(value.name, []).append(None)
    return users


def arrays(graph):
    """Constants by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def fold_batch_normalisation(graph):
    """Conv and the BatchNormalization that alone follows it become one Conv."""
    users, constants, folded = consumers(graph), arrays(graph), []
    for node in graph.node:
        after = users.get(node.output[0], []) if node.output else []
        if node.op_type != "Conv" or len(after) != 1 or after[0] is None or after[0].op_type != "BatchNormalization":
            continue
        normal = after[0]
        parts = [constants.get(name) for name in normal.input[1:5]]
        weight = constants.get(node.input[1])
        bias = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.float32(0)
        if weight is None or bias is None or any(part is None for part in parts) or any(normal.output[1:]):
            continue
        scale, shift, mean, variance = parts
        epsilon = next((a.f for a in normal.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + np.float32(epsilon))
        names = [f"{normal.output[0]}_weight", f"{normal.output[0]}_bias"]
        for name, array in zip(names, (weight * factor.reshape(-1, *[1] * (weight.ndim - 1)),
                                       (bias - mean) * factor + shift), strict=True):
            graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        del node.input[1:]
        node.input.extend(names)
        node.output[0] = normal.output[0]
        folded.append(normal)
    for node in folded:
        graph.node.remove(node)
