"""What an app has to link for a program's backends and kernels, by the names each platform gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Name in CMake and in the Swift package of ExecuTorch. The Android package holds all of these.
_BACKENDS = {"XnnpackBackend": ("xnnpack_backend", "backend_xnnpack")}
_KERNELS = {
    "aten": ("optimized_native_cpu_ops_lib", "kernels_optimized"),
    "dim_order_ops": ("optimized_native_cpu_ops_lib", "kernels_optimized"),
    "executorch_prim": ("executorch", "executorch"),
    "": ("executorch", "executorch"),
    "llama": ("custom_ops", "kernels_llm"),
    "quantized_decomposed": ("quantized_ops_lib", "kernels_quantized"),
    "torchao": ("torchao_ops_executorch", "kernels_torchao"),
}
_RUNNER = ("extension_llm_runner", "executorch_llm")


@dataclass(frozen=True)
class Links:
    """Libraries by platform; `whole` are those of `cmake` that register themselves when they are linked whole, and
    `unknown` the backends and kernel namespaces that no library is known for."""

    cmake: tuple[str, ...]
    whole: tuple[str, ...]
    swift: tuple[str, ...]
    unknown: tuple[str, ...]


def links(backends: Sequence[str], namespaces: Sequence[str]) -> Links:
    """What to link for these backends and kernel namespaces, and the LLM runner."""
    known = {**_BACKENDS, **_KERNELS}
    needed = [*backends, *namespaces]
    found = [_RUNNER, *(known[name] for name in needed if name in known)]
    core = ("executorch", "executorch")
    cmake, swift = (tuple(dict.fromkeys(one[side] for one in [core, *found])) for side in (0, 1))
    whole = tuple(name for name in cmake if name not in (core[0], _RUNNER[0]))
    return Links(cmake, whole, swift, tuple(name for name in needed if name not in known))
