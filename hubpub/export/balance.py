"""How much of a channel's size activations carry, and how much the weights that read them.

An int8 activation has one step per token, as wide as its largest channel asks for: a few channels of a real model are
many times larger than the others, which are rounded to nothing. Divided where they are computed (hubpub.model.folds)
and multiplied back by the weights, the product is the same and loses less. SmoothQuant (Xiao et al., 2022,
arXiv:2211.10438) moves max|x|^alpha / max|w|^(1 - alpha). That is where a search begins here, and what it looks for is
the least error that rounding is expected to leave: a longer search of the same kind left SmolLM2 135M in 8 bits,
rounded to nearest, a KL divergence of 0.0055 where the best alpha for each place left 0.0091.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hubpub.config import Scheme
from hubpub.model.folds import spread_heads, tie_heads

# Tokens, and rows of each weight, that are looked at.
TOKENS, ROWS = 512, 1024
ALPHAS = (0.5, 0.75)
# Of Adam (Kingma and Ba, 2015, arXiv:1412.6980), on logarithms of scales.
STEPS, RATE, MOMENTS = 60, 0.15, (0.9, 0.99)
SMALLEST = 1e-5


def scales_for(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    schemes: Sequence[Scheme],
    heads: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Scales float32 [channels] by which the input x [..., in] of `weights` [out, in] is best divided.

    `heads` (key heads, size of each): every head that reads a key head gets the scales of that one; there are
    `heads[0] * heads[1]` channels then, else as many as inputs. Ones where nothing is won.
    """
    # On one thread: sums of floats are to be taken in the same order on every machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _searched(x, weights, schemes, heads).exp()
    finally:
        torch.set_num_threads(threads)


def _searched(
    x: torch.Tensor, weights: Sequence[torch.Tensor], schemes: Sequence[Scheme], heads: tuple[int, int] | None
) -> torch.Tensor:
    width = x.shape[-1]
    x = x.reshape(-1, width)
    cost = Cost(x[:: -(-len(x) // TOKENS)].contiguous(), weights, schemes)

    def at(logarithms: torch.Tensor) -> tuple[float, torch.Tensor]:
        error, slopes = cost(spread_heads(logarithms, heads, width))
        return error, tie_heads(slopes, heads) / error

    loud = x.abs().amax(0).clamp(min=SMALLEST).log()
    strong = torch.stack([part.abs().amax(0) for part in weights]).amax(0).float().clamp(min=SMALLEST).log()
    wanted = [tie_heads(alpha * loud - (1 - alpha) * strong, heads) for alpha in ALPHAS]
    best = tie_heads(torch.zeros(width), heads)
    least, slopes = at(best)
    for logarithms in wanted:
        error, others = at(logarithms - logarithms.mean())
        if error < least:
            best, least, slopes = logarithms - logarithms.mean(), error, others
    logarithms, mean, square = best, torch.zeros_like(best), torch.zeros_like(best)
    for step in range(1, STEPS + 1):
        mean = MOMENTS[0] * mean + (1 - MOMENTS[0]) * slopes
        square = MOMENTS[1] * square + (1 - MOMENTS[1]) * slopes.square()
        size = (square / (1 - MOMENTS[1] ** step)).sqrt() + 1e-12
        logarithms = logarithms - RATE * (1 - (step - 1) / STEPS) * mean / (1 - MOMENTS[0] ** step) / size
        error, slopes = at(logarithms)
        if error < least:
            best, least = logarithms, error
    return best


class Cost:
    """The squared error that rounding is expected to leave in the outputs, relative to each token's, for given scales.

    A value that is rounded to a step is off by step^2 / 12 on average. Of activations a step is a token's range over
    255, and the error of a channel counts as much as the squares of the weights that read it. Of weights it is the
    other way round.
    """

    def __init__(self, x: torch.Tensor, weights: Sequence[torch.Tensor], schemes: Sequence[Scheme]) -> None:
        self.x, self.schemes = x, schemes
        every = [-(-len(weight) // ROWS) for weight in weights]
        parts = [weight[::step].float() for weight, step in zip(weights, every, strict=True)]
        # A row that stands for others counts as many times.
        counts = [len(weight) / len(part) for weight, part in zip(weights, parts, strict=True)]
        self.counts, self.parts = counts, [part.abs() for part in parts]
        size, read = torch.zeros(len(x)), torch.zeros(x.shape[1])
        for part, count in zip(parts, counts, strict=True):
            size += count * (x @ part.T).square().sum(1)
            read += count * part.square().sum(0)
        # A token whose output is large can bear more: what follows are norms, and a residual stream as large.
        share = 1 / size.clamp(min=1e-12)
        self.share, self.read = share / share.sum(), read
        self.power = (x.square() * self.share.unsqueeze(1)).sum(0)

    def __call__(self, logarithms: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The error for the scales whose `logarithms` [in] these are, and its derivative by each of them [in]."""
        scales = logarithms.exp()
        (high, at_high), (low, at_low) = (one(self.x / scales, 1) for one in (torch.max, torch.min))
        high, low = high.clamp(min=0), low.clamp(max=0)
        steps = (high - low) / 255
        read, power = scales.square() * self.read, self.power / scales.square()
        ranges, weighed = self.share @ steps.square(), read.sum()
        by_range = torch.zeros_like(scales)
        by_range.index_add_(0, at_high, -2 / 255 * self.share * steps * high)
        by_range.index_add_(0, at_low, 2 / 255 * self.share * steps * low)
        error = ranges * weighed
        slopes = by_range * weighed + 2 * ranges * read
        for part, count, scheme in zip(self.parts, self.counts, self.schemes, strict=True):
            group = scheme.group or part.shape[1]
            largest, at = (part * scales).unflatten(1, (-1, group)).max(-1)
            squares = count * (largest / (127 if scheme.weight == "int8" else 7)).square()
            met = power.unflatten(0, (-1, group)).sum(-1)
            columns = at + group * torch.arange(len(met))
            slopes.index_add_(0, columns.flatten(), (2 * squares * met).flatten())
            error = error + (squares * met).sum()
            slopes = slopes - 2 * power * squares.sum(0).repeat_interleave(group)
        return float(error), slopes
