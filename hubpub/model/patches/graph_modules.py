"""Every pass over a graph compiles the module it makes, and keeps the history of every node, which nobody reads.

A hundred modules are made on the way to a program, and a handful of them are called: those are compiled when they are.
A node's history is a list that only ever grows at its end by making a longer one, so that lists may be shared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from hubpub.model.patches import Patch, expect, replaced

NAME = "graph-modules"


def _defective() -> bool:
    import torch.fx.traceback
    from torch.fx import GraphModule

    expect(
        NAME,
        GraphModule.recompile,
        parameters=["self"],
        source=["self._in_spec = ", "self._out_spec = ", "cls.forward = _forward_from_src(", "_recompile_submodules()"],
    )
    expect(
        NAME,
        torch.fx.traceback.NodeSource.__init__,
        parameters=["self", "node", "pass_name", "action"],
        source=['copy.deepcopy(node.meta["from_node"])'],
    )
    return True


@contextmanager
def _apply() -> Iterator[None]:
    import torch.fx.traceback
    from torch.fx import GraphModule, config
    from torch.fx.graph import _PyTreeCodeGen

    compiled = GraphModule.recompile

    def first_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiled(self)
        return self.forward(*args, **kwargs)

    def recompile(self: Any) -> None:
        # Each module is of a class of its own.
        type(self).forward = first_call
        self._code = "compiled when it is called"
        if isinstance(self._graph._codegen, _PyTreeCodeGen):
            tree = self._graph._codegen.pytree_info
            self._in_spec, self._out_spec = tree.in_spec, tree.out_spec
        self._recompile_submodules()

    with (
        replaced(GraphModule, "recompile", recompile),
        replaced(torch.fx.traceback, "copy", SimpleNamespace(copy=copy.copy, deepcopy=list)),
        # Where in the model's code each of some ten thousand nodes comes from.
        replaced(config, "do_not_emit_stack_traces", True),
    ):
        yield


PATCH = Patch(
    name=NAME,
    defect="each pass compiles the Python of the graph it makes and copies every node's history, which nobody reads",
    url="https://github.com/pytorch/pytorch/blob/v2.13.0/torch/fx/graph_module.py",
    package="torch",
    versions=">=2.13,<2.14",
    defective=_defective,
    apply=_apply,
)
