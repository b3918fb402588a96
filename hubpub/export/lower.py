"""From a decoder to an ExecuTorch program: trace, simplify, partition, plan memory."""

from __future__ import annotations

import contextlib
import gc
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hubpub.errors import ExportError
from hubpub.export.delegate import Weight, delegate, is_product
from hubpub.export.quantize import DynamicLinear
from hubpub.model.decoder import CachedDecoder

Metadata = dict[str, int | bool | list[int]]
aten = torch.ops.aten


@dataclass(frozen=True)
class Lowered:
    """A program ready to be written, and the seconds each stage took."""

    program: Any
    export_seconds: float
    lower_seconds: float


def trace(decoder: nn.Module) -> torch.export.ExportedProgram:
    """Export `decoder` and simplify the graph. A cached decoder takes S tokens, 1 to `prefill` of them."""
    example: tuple[torch.Tensor, ...]
    dynamic: Any
    if isinstance(decoder, CachedDecoder):
        example = (torch.ones(1, 8, dtype=torch.long), torch.tensor([0]))
        dynamic = ({1: torch.export.Dim("S", min=1, max=decoder.prefill)}, {})
    else:
        example, dynamic = (torch.ones_like(decoder.get_buffer("positions")),), None
    with torch.no_grad():
        program = torch.export.export(decoder, example, dynamic_shapes=dynamic, strict=False)
    simplify(program.graph_module)
    return program


def lower(program: torch.export.ExportedProgram, weights: dict[str, Weight], metadata: Metadata) -> Any:
    """An ExecuTorch program of `program`: products with `weights` go to XNNPACK, the rest to kernels."""
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    # Kept whole, a linear layer reads its weight as stored; decomposed, it would need a transposed copy.
    edge = to_edge(
        program,
        constant_methods=metadata,
        compile_config=EdgeCompileConfig(
            _check_ir_validity=False, _skip_dim_order=True, preserve_ops=[aten.linear.default]
        ),
    )
    edge._named_data_store = delegate(edge.exported_program(), weights)
    return edge.to_executorch(
        ExecutorchBackendConfig(
            extract_delegate_segments=True,
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
        )
    )


def export(decoder: nn.Module, recipe: str, metadata: Metadata) -> Lowered:
    """Trace and lower `decoder`. Raises ExportError naming the stage that failed."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    stage = "export"
    try:
        with quiet(), _no_collection(), sdpa_kernel(SDPBackend.MATH):
            started = time.monotonic()
            program = trace(decoder)
            traced = time.monotonic()
            stage = "lowering"
            caps = take_softcaps(program.graph_module)
            layers = (module for module in decoder.modules() if isinstance(module, DynamicLinear))
            weights = {layer.name: Weight.of(layer, caps.get(layer.name)) for layer in layers}
            lowered = lower(program, weights, metadata)
            return Lowered(lowered, traced - started, time.monotonic() - traced)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"{stage} with recipe '{recipe}' failed: {type(error).__name__}: {reason[0] if reason else ''}",
            "run again with --verbose for the whole story",
        ) from error


def simplify(graph_module: torch.fx.GraphModule) -> None:
    """Rewrite what tracing leaves behind, without changing a value: the graph is half the size to lower and to run.

    Conversions to the dtype a tensor already has, assertions about metadata and pairs of transposes go; squares and
    reciprocal square roots become the operators of that name, which cost a fraction of `pow` in the runtime. What
    several layers ask of one input, the sums of its groups, is computed once.
    """
    graph = graph_module.graph
    asked: dict[str, torch.fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        target, args = node.target, node.args
        if target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif _does_nothing(node):
            _drop(graph, node, args[0])
        elif target in (aten.unflatten.int, aten.sum.dim_IntList):
            first = asked.setdefault(repr((target, args, node.kwargs)), node)
            if first is not node:
                _drop(graph, node, first)
        elif target is aten.transpose.int and _swaps_back(node):
            _drop(graph, node, args[0].args[0])
        elif target is aten.pow.Tensor_Scalar and args[1] in (2, -0.5, 0.5):
            with graph.inserting_before(node):
                if args[1] == 2:
                    new = graph.call_function(aten.mul.Tensor, (args[0], args[0]))
                else:
                    new = graph.call_function(aten.rsqrt.default if args[1] < 0 else aten.sqrt.default, (args[0],))
            new.meta = dict(node.meta)
            _drop(graph, node, new)
    graph.eliminate_dead_code()
    graph.lint()
    graph_module.recompile()


def take_softcaps(graph_module: torch.fx.GraphModule) -> dict[str, float]:
    """Take c * tanh(y / c) after a product y out of the graph, for the product's delegate to do; c by product name.

    Over a vocabulary of a quarter of a million it costs more outside than in XNNPACK's vectors.
    """
    graph, found = graph_module.graph, {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_product(node.target):
            continue
        chain = [node]
        for target in (aten.div.Tensor, aten.tanh.default, aten.mul.Tensor):
            if len(chain[-1].users) == 1 and (user := next(iter(chain[-1].users))).target is target:
                chain.append(user)
        if len(chain) == 4 and chain[1].args[1] == chain[3].args[1] and isinstance(cap := chain[1].args[1], float):
            found[str(node.args[1])] = cap
            _drop(graph, chain[3], node)
    graph.eliminate_dead_code()
    graph_module.recompile()
    return found


_CASTS = {aten.to.dtype, aten.type_as.default, aten.to.device, aten.to.dtype_layout}


def _does_nothing(node: torch.fx.Node) -> bool:
    if node.target in _CASTS:
        return bool(node.meta["val"].dtype == node.args[0].meta["val"].dtype)
    return node.target is aten.contiguous.default and node.args[0].meta["val"].is_contiguous()


def _swaps_back(node: torch.fx.Node) -> bool:
    inner = node.args[0]
    if not isinstance(inner, torch.fx.Node) or inner.target is not aten.transpose.int:
        return False
    return sorted(map(int, inner.args[1:3])) == sorted(map(int, node.args[1:3]))


def _drop(graph: torch.fx.Graph, node: torch.fx.Node, instead: torch.fx.Node) -> None:
    node.replace_all_uses_with(instead)
    graph.erase_node(node)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Graphs of a hundred thousand live objects make every garbage collection a long walk that frees nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the export stack's advice to its own developers off the user's screen; errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
