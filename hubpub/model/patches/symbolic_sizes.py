"""Arithmetic on symbolic sizes is done anew for each tensor: a thousand results, a hundred and fifty times each.

A size is an expression in the length of a text. What comes of two of them is the same as long as nothing more is
learned about the symbols in them, which upstream counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from hubpub.model.patches import Patch, expect, replaced

NAME = "symbolic-sizes"
OPERATORS = ("_add", "_sub", "_mul", "_int_floordiv", "_eq", "_ne", "_gt", "_lt", "_ge", "_le")

Operator = Callable[[Any, Any], Any]


def _defective() -> bool:
    from torch.fx.experimental.sym_node import SymNode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    for name in OPERATORS:
        expect(
            NAME,
            getattr(SymNode, name),
            parameters=["self", "other"],
            source=["if get_proxy_mode():", "self._optimized_summation", "result = SymNode("],
        )
    expect(
        NAME,
        ShapeEnv._set_replacement,
        parameters=["self", "a", "tgt", "msg"],
        source=["self._replacements_version_counter += 1"],
    )
    return True


@contextmanager
def _apply() -> Iterator[None]:
    from torch.fx.experimental.proxy_tensor import get_proxy_mode
    from torch.fx.experimental.sym_node import SymNode

    known: dict[tuple[Any, ...], Any] = {}

    def remembered(name: str, operator: Operator) -> Operator:
        def call(self: Any, other: Any) -> Any:
            # Operations that are recorded have to be; and where translations are validated each has a node of its own.
            known_in = self.shape_env
            if known_in is None or self.fx_node or other.fx_node or get_proxy_mode():
                return operator(self, other)
            key = (name, known_in, known_in._replacements_version_counter, *_all_of(self), *_all_of(other))
            if (found := known.get(key)) is None:
                found = known[key] = operator(self, other)
            return found

        return call

    with ExitStack() as stack:
        for name in OPERATORS:
            stack.enter_context(replaced(SymNode, name, remembered(name, getattr(SymNode, name))))
        yield


def _all_of(size: Any) -> tuple[Any, ...]:
    # Numbers of different types are equal, and are not the same size.
    return size._expr, size.pytype, size._hint, size.constant, size._optimized_summation


PATCH = Patch(
    name=NAME,
    defect="arithmetic on symbolic sizes is done anew for each tensor, a hundred and fifty times on average",
    url="https://github.com/pytorch/pytorch/blob/v2.13.0/torch/fx/experimental/sym_node.py",
    package="torch",
    versions=">=2.13,<2.14",
    defective=_defective,
    apply=_apply,
)
