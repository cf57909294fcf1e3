"""What the agent refuses to load, found before a bundle is made of it.

The rules and their words are those of shared/runtime/src/graph.rs (`test_refusals.py` holds the words together); what to do
instead is said here. Shapes are checked too: the agent pins a symbolic batch itself, a bundle of this recipe has it pinned.
"""

import onnx

MIXING = ("Softmax", "LogSoftmax")
RECURRENT = ("LSTM", "GRU", "RNN")
EIGHT_BIT = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.INT8: "int8"}
DEPTH_MAX, CHAIN_MAX = 8, 64

FOREIGN = ("node `{node}`: operator {operator} is of domain {domain}; expected standard ONNX operators only "
           "(export without vendor fusions)")
FUNCTION = "function `{function}` of the model's own; expected operators only (inline functions when exporting)"
QUANTIZED_MIXING = ("node `{node}`: {operator} between DequantizeLinear and QuantizeLinear is computed wrongly by the engine; "
                    "keep {operator} in float")
MIXED_REQUANTIZATION = ("node `{node}`: requantization from {from} to {to} is not supported by the engine; "
                        "use one 8-bit type for both")
REVERSE = "node `{node}`: {operator} with direction {direction} is computed wrongly by the engine; expected forward"
EXTERNAL = "tensor `{tensor}`: weights in an external file; expected all weights inside the model's own"
TOO_DEEP = "subgraphs are nested deeper than {DEPTH_MAX}"
NO_GRAPH = "the file holds no graph; expected an ONNX model"
FLOAT_FIRST = "hand the float model to `recipe.py convert`"
# Words of the agent, and what to do instead.
INSTEAD = {
    FOREIGN: f"{FLOAT_FIRST}: it writes standard operators only",
    FUNCTION: "onnx.inliner.inline_local_functions does it",
    QUANTIZED_MIXING: f"{FLOAT_FIRST}: it leaves {{operator}} alone",
    MIXED_REQUANTIZATION: f"{FLOAT_FIRST}: it uses int8 throughout",
    REVERSE: "reverse the window's rows before the model, or train it forward",
    EXTERNAL: "load it beside its weights and save it with onnx.save(model, path, save_as_external_data=False)",
    TOO_DEEP: "export without nested If, Loop and Scan",
    NO_GRAPH: "export it again",
}


def refusals(model):
    """Every pattern that the agent refuses: texts, in the file's order."""
    found = [refusal(FUNCTION, function=function.name) for function in model.functions]
    if not model.HasField("graph"):
        return [*found, refusal(NO_GRAPH)]
    return found + in_graph(model.graph, 0)


def refusal(words, **names):
    """The agent's words and what to do instead."""
    return f"{words.format_map(names)}; instead: {INSTEAD[words].format_map(names)}"


def in_graph(graph, depth):
    if depth > DEPTH_MAX:
        return [refusal(TOO_DEEP, DEPTH_MAX=DEPTH_MAX)]
    found = [text for tensor in graph.initializer for text in in_tensor(tensor)]
    for node in graph.node:
        found += in_node(node)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found += in_tensor(attribute.t)
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                found += in_graph(inner, depth + 1)
    wiring = Wiring(graph)
    return found + [text for node in graph.node if node.op_type == "QuantizeLinear" for text in wiring.in_quantize(node)]


def in_tensor(tensor):
    is_outside = tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data
    return [refusal(EXTERNAL, tensor=tensor.name)] if is_outside else []


def in_node(node):
    if node.domain not in ("", "ai.onnx"):
        return [refusal(FOREIGN, node=node_name(node), operator=node.op_type, domain=node.domain)]
    direction = next((a.s.decode() for a in node.attribute if a.name == "direction"), "") or "forward"
    if node.op_type in RECURRENT and direction != "forward":
        return [refusal(REVERSE, node=node_name(node), operator=node.op_type, direction=direction)]
    return []


def node_name(node):
    return node.name or next(iter(node.output), "")


class Wiring:
    """Who makes which value."""

    def __init__(self, graph):
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}

    def computed(self, node):
        return [name for name in node.input if name and name not in self.constants]

    def chain(self, value):
        """The nodes up from a value, while there is one computed input."""
        for _ in range(CHAIN_MAX):
            node = self.producers.get(value)
            if node is None:
                return
            yield node
            computed = self.computed(node)
            if len(computed) != 1:
                return
            value = computed[0]

    def in_quantize(self, quantize):
        mixing, is_straight = None, True
        for node in self.chain(quantize.input[0]):
            if node.op_type == "DequantizeLinear":
                if node.input[0] in self.constants:
                    return []
                return self.in_pair(node, mixing, is_straight, quantize)
            if node.op_type in MIXING:
                mixing = node
            is_straight &= len(node.input) == 1
        return []

    def in_pair(self, dequantize, mixing, is_straight, quantize):
        if mixing is not None:
            return [refusal(QUANTIZED_MIXING, node=node_name(mixing), operator=mixing.op_type)]
        before = self.constants.get(zero_point(dequantize)) or self.inputs.get(dequantize.input[0])
        name = zero_point(quantize)
        after = self.constants.get(name) if name else onnx.TensorProto.UINT8
        names = EIGHT_BIT.get(before), EIGHT_BIT.get(after)
        if None in names or names[0] == names[1] or not is_straight:
            return []
        return [refusal(MIXED_REQUANTIZATION, **{"node": node_name(quantize), "from": names[0], "to": names[1]})]


def zero_point(node):
    return node.input[2] if len(node.input) > 2 else ""


def real_inputs(graph):
    """Inputs that are no constants: old files list those among the inputs too."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def dimensions(value):
    """A value's dimensions: numbers, or the names of symbolic ones."""
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def shape_refusals(model):
    """What a bundle cannot say of the model's input."""
    inputs = real_inputs(model.graph)
    if len(inputs) != 1:
        return [f"inputs {[value.name for value in inputs]}; expected one input: cut the others off, or make them constants"]
    value, found = inputs[0], []
    if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        found.append(f"input `{value.name}`: type {kind}; expected FLOAT: export the model with a float input")
    sizes = dimensions(value)
    if not sizes:
        return [*found, f"input `{value.name}`: no shape; expected a concrete one with a batch of 1: export it with its shape"]
    if isinstance(sizes[0], str):
        found.append(f"input `{value.name}`: the batch is symbolic ({sizes[0]}), which makes convolutions several times "
                     "slower; expected 1: pass --batch 1")
    elif sizes[0] != 1:
        found.append(f"input `{value.name}`: the batch is {sizes[0]}; expected 1: export it with a batch of 1")
    if any(isinstance(size, str) for size in sizes[1:]):
        found.append(f"input `{value.name}`: shape {sizes} is symbolic past the batch; expected numbers: export it with "
                     "a concrete shape")
    return found
