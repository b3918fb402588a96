"""`to_edge` traces the whole graph anew for each of four passes that rewrite single operators.

Each of them hands every operator on to its base class when it is done: stacked as one class they do the same to each
operator in turn, in one walk over the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from hubpub.errors import ToolchainError
from hubpub.model.patches import Patch, expect, replaced

NAME = "edge-passes"


def _chain() -> tuple[type, ...]:
    """The passes that are stacked: those that stand side by side upstream, in the order they run in."""
    from executorch.exir import passes
    from executorch.exir.passes.replace_broken_ops_with_function_ops_pass import ReplaceBrokenOpsWithFunctionalOpsPass

    return (
        passes.NormalizeTransposePass,
        ReplaceBrokenOpsWithFunctionalOpsPass,
        passes.ScalarToTensorPass,
        passes.SymToTensorPass,
    )


def _place(passes: Sequence[Any], chain: Sequence[type]) -> int | None:
    """Where the passes of `chain` stand one after the other, or None. Upstream hands them around wrapped, by name."""
    names = [getattr(one, "__name__", type(one).__name__) for one in passes]
    wanted = [one.__name__ for one in chain]
    return next((at for at in range(len(names)) if names[at : at + len(wanted)] == wanted), None)


def _defective() -> bool:
    from executorch.exir import EdgeCompileConfig
    from executorch.exir.program import _program

    target = _program._get_aten_to_edge_passes
    expect(NAME, target, parameters=["config"], source=["base_pre_op_replace_passes"])
    if _place(target(EdgeCompileConfig())[0], _chain()) is None:
        raise ToolchainError(
            f"patch '{NAME}': to_edge runs other passes now, or in another order",
            "read the upstream change, then adapt or retire the patch under hubpub/model/patches",
        )
    return True


def _apply() -> AbstractContextManager[None]:
    from executorch.exir.program import _program

    before, chain = _program._get_aten_to_edge_passes, _chain()
    stacked = type("OneRetrace", chain, {})

    def fewer(config: Any) -> tuple[list[Any], list[Any]]:
        first, last = before(config)
        at = _place(first, chain)
        assert at is not None
        return [*first[:at], stacked(), *first[at + len(chain) :]], last

    return replaced(_program, "_get_aten_to_edge_passes", fewer)


PATCH = Patch(
    name=NAME,
    defect="to_edge traces the whole graph anew for each of four passes that rewrite single operators",
    url="https://github.com/pytorch/executorch/blob/v1.4.1/exir/program/_program.py",
    package="executorch",
    versions=">=1.4,<1.5",
    defective=_defective,
    apply=_apply,
)
