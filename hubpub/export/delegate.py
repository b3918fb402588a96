"""Matrix products for XNNPACK, written as its delegates directly.

The products of one input (queries, keys and values; gate and up) become one delegate: the input is quantized once, or
made wide for weights of 16 bits (their high bytes see 256 times the input, their low ones the input), and nothing of
the graph around has to be traced, copied or searched again for each of a hundred partitions. Weights are handed on as
they are stored; the file names each by its module path. A delegate holds no other constants: ExecuTorch 1.4.1 frees
them once packed weights lie in a file (XNNWeightsCache, `unpacked_data_`), so a number to compute with is an input.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from hubpub.export.quantize import HIGH, DynamicLinear
from hubpub.export.write import stored

BACKEND = "XnnpackBackend"
ALIGNMENT = 16


@dataclass(frozen=True)
class Weight:
    """Integers [rows, columns] and scales of one linear layer, under its name.

    Those of four bits are packed by two, low half first; of those of 16 the low bytes of a row follow its high ones.

    With `softcap` c the product y becomes c * tanh(y / c).
    """

    name: str
    values: torch.Tensor
    scales: torch.Tensor
    bits: int
    group: int | None
    columns: int
    softcap: float | None = None

    @classmethod
    def of(cls, layer: DynamicLinear, softcap: float | None = None) -> Weight:
        return cls(layer.name, layer.values, layer.scales, layer.bits, layer.group, layer.in_features, softcap)

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """What the file holds of it, by name."""
        return {f"{self.name}.values": self.values, f"{self.name}.scales": self.scales}

    @property
    def numbers(self) -> tuple[float, ...]:
        """What its product is computed with, beside the weights."""
        wide = (HIGH,) if self.bits == 16 else ()
        return wide if self.softcap is None else (*wide, 1 / self.softcap, self.softcap)


def delegate(program: Any, weights: dict[str, Weight]) -> Any:
    """Replace the `hubpub::dynamic_linear` calls of an edge program by delegates; returns the data they name.

    `program` is changed in place; `weights` are by name, which is the third argument of each call.
    """
    from executorch.exir._serialize._named_data_store import NamedDataStore
    from executorch.exir.delegate import executorch_call_delegate
    from executorch.exir.lowered_backend_module import LoweredBackendModule

    module, graph = program.graph_module, program.graph_module.graph
    data = NamedDataStore()
    scalars: dict[float, torch.fx.Node] = {}
    first = next(node for node in graph.nodes if node.op != "placeholder")
    inputs: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and is_product(node.target):
            inputs.setdefault(node.args[0], []).append(node)
    for number, products in enumerate(inputs.values()):
        # Not the key: an input that is itself such a product was replaced by now.
        x = products[0].args[0]
        chosen = [weights[product.args[1]] for product in products]
        numbers = sorted({number for weight in chosen for number in weight.numbers})
        for value in numbers:
            if value not in scalars:
                with graph.inserting_before(first):
                    scalars[value] = _scalar(graph, value, x.meta["val"])
        blob = _blob(_upper_bound(x.meta["val"].shape), chosen, numbers)
        for weight in chosen:
            for key, tensor in weight.stored.items():
                data.add_named_data(key, stored(tensor), ALIGNMENT)
        # All that is ever asked of the original program: how many outputs it has, and their shapes.
        original: Any = SimpleNamespace(graph=_outputs(len(products)), module=partial(_shapes, chosen))
        lowered = LoweredBackendModule(original, BACKEND, blob, [])
        lowered.meta = {"debug_handle_map": {}}
        name = f"lowered_module_{number}"
        module.register_module(name, lowered)
        with graph.inserting_before(products[0]):
            target = graph.get_attr(name)
            call = graph.call_function(executorch_call_delegate, (target, x, *(scalars[value] for value in numbers)))
            call.meta["val"] = [product.meta["val"] for product in products]
            for index, product in enumerate(products):
                part_of = graph.call_function(operator.getitem, (call, index))
                part_of.meta["val"] = product.meta["val"]
                product.replace_all_uses_with(part_of)
        for product in products:
            graph.erase_node(product)
    module.recompile()
    return data


def _scalar(graph: torch.fx.Graph, value: float, like: torch.Tensor) -> torch.fx.Node:
    """A node that makes a tensor [1] of `value`, in the mode that `like` was traced in."""
    from executorch.exir.dialects._ops import ops

    node = graph.call_function(ops.edge.aten.full.default, ([1], value), {"dtype": torch.float32})
    node.meta["val"] = like.new_full([1], value, dtype=torch.float32)
    return node


def is_product(target: Any) -> bool:
    """Whether a graph's function is `hubpub::dynamic_linear`, before or after `to_edge`."""
    return target is torch.ops.hubpub.dynamic_linear.default or (
        getattr(target, "_op", None) is torch.ops.hubpub.dynamic_linear.default
    )


def _shapes(weights: list[Weight]) -> Callable[..., list[torch.Tensor]]:
    return lambda x, *_: [x.new_empty(*x.shape[:-1], weight.values.shape[0]) for weight in weights]


def _outputs(count: int) -> torch.fx.Graph:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(tuple(x for _ in range(count)))
    return graph


def _upper_bound(shape: torch.Size) -> list[int]:
    from executorch.exir.sym_util import eval_shape_upper_bound

    return [int(size) for size in eval_shape_upper_bound(shape)]


def _blob(shape: list[int], weights: list[Weight], numbers: list[float]) -> bytes:
    """One delegate: x [..., K] float32, quantized per token or made wide, is multiplied with every weight [N, K].

    Its inputs are x and a tensor [1] for each of `numbers`.
    """
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary

    graph = _Graph(1 + len(numbers), len(weights))
    x = graph.external(shape, 0)
    given = {number: graph.external([1], 1 + index) for index, number in enumerate(numbers)}
    # The two forms of the input that its products read, each made once, and only where one reads it.
    forms: dict[bool, int] = {}
    for index, weight in enumerate(weights):
        wide = weight.bits == 16
        if wide not in forms:
            forms[wide] = graph.wide(x, given[HIGH], shape) if wide else graph.quantized(x, shape)
        matrix = graph.matrix(weight)
        dims = [*shape[:-1], weight.values.shape[0]]
        out = graph.external(dims, 1 + len(numbers) + index, output=True)
        if weight.softcap is None:
            graph.product(forms[wide], matrix, out)
            continue
        plain, small, capped = (graph.value(dims) for _ in range(3))
        graph.product(forms[wide], matrix, plain)
        graph.multiply(plain, given[1 / weight.softcap], small)
        graph.tanh(small, capped)
        graph.multiply(capped, given[weight.softcap], out)
    return bytes(serialize_xnnpack_binary(graph.made, bytearray()))


class _Graph:
    """A graph in XNNPACK's schema, as it grows: every method that adds a value returns its number."""

    def __init__(self, inputs: int, outputs: int) -> None:
        from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
        from executorch.backends.xnnpack.utils import xnnpack_constants

        self._schema, self._constants = schema, xnnpack_constants
        self._kinds = schema.XNNDatatype
        self.made = schema.XNNGraph(
            version="0",
            xnodes=[],
            xvalues=[],
            num_externs=inputs + outputs,
            input_ids=list(range(inputs)),
            output_ids=[],
            constant_data=[schema.ConstantDataOffset(0, 0)],
        )

    def value(
        self,
        dims: list[int],
        datatype: Any = None,
        *,
        external: int | None = None,
        flags: int = 0,
        constant: int = 0,
        how: Any = None,
    ) -> int:
        """A tensor, float32 where no `datatype` is given; `how` it is quantized, where it is."""
        schema, number = self._schema, len(self.made.xvalues)
        tensor = schema.XNNTensorValue(
            datatype=self._kinds.xnn_datatype_fp32 if datatype is None else datatype,
            num_dims=len(dims),
            dims=dims,
            constant_buffer_idx=constant,
            external_id=self._constants.XNN_INVALID_VALUE_ID if external is None else external,
            flags=flags,
            id_out=number,
        )
        union = tensor if how is None else schema.XNNQuantizedTensorValue(tensor_value=tensor, quant_params=how)
        self.made.xvalues.append(schema.XValue(xvalue_union=union))
        return number

    def external(self, dims: list[int], place: int, *, output: bool = False) -> int:
        """What the delegate is called with at `place`, or returns there."""
        names = self._constants
        flag = names.XNN_VALUE_FLAG_EXTERNAL_OUTPUT if output else names.XNN_VALUE_FLAG_EXTERNAL_INPUT
        number = self.value(dims, external=place, flags=flag)
        if output:
            self.made.output_ids.append(number)
        return number

    def matrix(self, weight: Weight) -> int:
        """The integers of `weight` with their scales, both by name."""
        integers, scales = self._constant(weight, "values"), self._constant(weight, "scales")
        rows = weight.values.shape[0]
        how: Any
        if weight.group:
            datatype = self._kinds.xnn_datatype_qbint4
            how = self._schema.PerChannelGroupQuant(
                scale=[],
                channel_dim=0,
                group_size=weight.group,
                scale_buffer_idx=scales,
                num_scales=weight.scales.numel(),
            )
        else:
            datatype = self._kinds.xnn_datatype_qcint8
            how = self._schema.PerChannelQuant(scale=[], channel_dim=0, scale_buffer_idx=scales, num_scales=rows)
        columns = 2 * weight.columns if weight.bits == 16 else weight.columns
        return self.value([rows, columns], datatype, constant=integers, how=how)

    def _constant(self, weight: Weight, part: str) -> int:
        name = f"{weight.name}.{part}"
        size, data = weight.stored[name].nbytes, self.made.constant_data
        data.append(self._schema.ConstantDataOffset(offset=self._constants.UINT64_MAX, size=size, named_key=name))
        return len(data) - 1

    def quantized(self, x: int, shape: list[int]) -> int:
        """The input `x` in int8, with a scale and a zero point for each token."""
        per_token = self._schema.PerTokenDynamicQuant(num_nonbatch_dims=1)
        found = self.value(shape, self._kinds.xnn_datatype_qdint8, how=per_token)
        self._node(self._schema.XNNConvert(input_id=x, output_id=found, flags=0))
        return found

    def wide(self, x: int, factor: int, shape: list[int]) -> int:
        """The input `x` times `factor`, and then `x`: for the high bytes of weights, and for their low ones."""
        high = self.value(shape)
        self.multiply(x, factor, high)
        found = self.value([*shape[:-1], 2 * shape[-1]])
        rest = {f"input{number}_id": self._constants.XNN_INVALID_VALUE_ID for number in (3, 4, 5)}
        axis = len(shape) - 1
        self._node(
            self._schema.XNNConcatenate2(axis=axis, input1_id=high, input2_id=x, output_id=found, flags=0, **rest)
        )
        return found

    def product(self, x: int, matrix: int, into: int) -> None:
        none = self._constants.XNN_INVALID_VALUE_ID
        made = self._schema.XNNFullyConnected(input1_id=x, filter_id=matrix, bias_id=none, output_id=into, flags=0)
        self._node(made)

    def multiply(self, first: int, second: int, into: int) -> None:
        self._node(self._schema.XNNMultiply(input1_id=first, input2_id=second, output_id=into, flags=0))

    def tanh(self, x: int, into: int) -> None:
        self._node(self._schema.XNNTanh(input_id=x, output_id=into, flags=0))

    def _node(self, union: Any) -> None:
        self.made.xnodes.append(self._schema.XNode(xnode_union=union, debug_handle=0))
