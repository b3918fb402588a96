"""The shape function of `llama::custom_sdpa` gives its result the query's strides; the kernel writes it contiguous.

Exporting a query that is a transposed view then fails, or plans memory for a layout that never occurs. The shape
function is replaced by one that says what the kernel does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hubpub.model.patches import Patch, expect

NAME = "custom-sdpa-meta"


def _defective() -> bool:
    import torch
    from executorch.extension.llm.custom_ops import custom_ops

    expect(
        NAME,
        custom_ops.custom_sdpa,
        parameters=[
            "query", "key_cache", "value_cache", "start_pos", "attn_mask", "drpout_p", "is_causal", "scale"
        ],
        source=["return torch.empty_like(query)"],
    )  # fmt: skip
    query = torch.empty(1, 2, 3, 4, device="meta").transpose(1, 2)
    cache = torch.empty(1, 8, 2, 4, device="meta")
    return not custom_ops.custom_sdpa(query, cache, cache, 0).is_contiguous()


@contextmanager
def _apply() -> Iterator[None]:
    import torch
    from executorch.extension.llm.custom_ops import custom_ops

    before = custom_ops.custom_sdpa

    def meta(query: Any, *_: Any, **__: Any) -> Any:
        return torch.empty_like(query, memory_format=torch.contiguous_format)

    def register(kernel: Any) -> None:
        library = torch.library.Library("llama", "IMPL")
        library.impl("custom_sdpa", kernel, "Meta", allow_override=True)
        keep.append(library)

    keep: list[Any] = []
    register(meta)
    try:
        yield
    finally:
        register(before)
        _KEPT.extend(keep)


# A library that is collected takes its kernels with it.
_KEPT: list[Any] = []

PATCH = Patch(
    name=NAME,
    defect="the meta kernel of llama::custom_sdpa keeps the query's strides, the real kernel writes contiguous memory",
    url="https://github.com/pytorch/executorch/blob/v1.4.1/extension/llm/custom_ops/custom_ops.py",
    package="executorch",
    versions=">=1.4,<1.5",
    defective=_defective,
    apply=_apply,
)
