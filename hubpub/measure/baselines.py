"""What cannot be helped, measured on the model itself: limits that hold for a toy say nothing of a real model.

Real activations have outliers, and an int8 activation has one step per token. A change in the last bits of a float
moves some value across the border between two steps; what follows sees a change of a whole step, which moves more
values across. After a few layers two runs of the same quantized model, whose inputs differ by a millionth, are as far
apart as two independent roundings: 0.018 nats for SmolLM2 135M and 0.021 for Gemma 3 270M in `8da8w`, which is about
all that recipe loses (0.016 and 0.021). A kernel that sums in another order than PyTorch is such a change. No choice of
formula makes two implementations agree better than the model agrees with itself; `perturbed` measures that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Relative size of the change: that of one float32 operation done in another order, times a few. From 1e-7 to 1e-2 the
# result is the same within 20 %. Of bfloat16 it is half of its last bit, for less is no change.
PERTURBATION, PERTURBATION_BF16 = 1e-6, 2.0**-9
SEED = 0


@contextmanager
def perturbed(model: Any) -> Iterator[None]:
    """While open, what `model` looks up for its tokens differs in the last bits."""
    import torch

    generator = torch.Generator().manual_seed(SEED)

    def change(_: Any, __: Any, rows: Any) -> Any:
        size = PERTURBATION_BF16 if rows.dtype == torch.bfloat16 else PERTURBATION
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float32)
        return (rows * (1 + size * noise)).to(rows.dtype)

    handle = model.model.embed_tokens.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def int8_activations(model: Any) -> Iterator[None]:
    """While open, every linear layer of the float32 `model` reads its input rounded to int8, one scale per token."""
    from torch import nn

    from hubpub.export.quantize import to_int8_and_back

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [layer.register_forward_pre_hook(lambda _, args: (to_int8_and_back(args[0]),)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
