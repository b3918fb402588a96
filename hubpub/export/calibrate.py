"""Rounding that knows what a layer will see: GPTQ (Frantar et al., 2022, arXiv:2210.17323), one layer after the other.

A text runs through the model once. When it reaches a linear layer, the products of its inputs with one another are
summed up (the Hessian of the squared error of its output), its weights are rounded column by column, and what each
rounding does to the output is made up for by the columns that are still to come. The text goes on through the rounded
layer: the next ones see its error, and that of activations in eight bits, and answer for it.

Of a balanced recipe, scales move first from an input to the weights that read it (hubpub.export.balance). A layer that
was rounded already takes them into its own scales, and its integers stay.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hubpub.config import Recipe, Scheme
from hubpub.data import calibration
from hubpub.export.balance import scales_for
from hubpub.export.grid import keep_grids
from hubpub.export.quantize import (
    DynamicLinear,
    layer_schemes,
    pack,
    quantize,
    register_operators,
    replace,
    symmetric,
    to_int8_and_back,
)
from hubpub.facts import GridFact
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.families import Family
from hubpub.model.folds import HEAD, Fold, divide, folds_of, heads_of, spread_heads
from hubpub.model.reader import Reader
from hubpub.model.widened import narrow, widen
from hubpub.progress import Progress, unseen

# Readings of a text, and tokens of each. With twice as many the KL divergence of a 135M model fell by less than a
# hundredth of it; the widest layer of Gemma 3n E2B has 8,192 inputs, of which half would be too few.
WINDOWS, LENGTH = 16, 512
# Share of the mean of the diagonal that is added to it, as in the paper: inputs that never vary stay invertible.
DAMPING = 0.01
# Columns whose errors are handed on among themselves before the rest of the matrix is touched.
BLOCK = 128

Observer = Callable[[DynamicLinear, torch.Tensor, torch.Tensor], None]
"""Called with a layer as it was rounded, the weight [out, in] it stands for and its input x [..., in]."""


def readings(checkpoint: Checkpoint) -> torch.Tensor:
    """Tokens int64 [windows, LENGTH] of the calibration text: its dialogues as the chat template writes them.

    Raises SourceError where the checkpoint has no tokenizer.
    """
    reader = Reader(checkpoint.folder, checkpoint.family.begins_with_bos)
    texts, dialogues = calibration()
    if reader.tokenizer.chat_template:
        texts += tuple(_chat(reader, *pair) for pair in dialogues)
    else:
        texts += tuple(f"{question}\n{answer}" for question, answer in dialogues)
    tokens = [token for text in texts for token in reader.tokenizer.encode(text + "\n\n", add_special_tokens=False)]
    body = LENGTH - len(reader.bos)
    rows = max(1, min(WINDOWS, len(tokens) // body))
    # A text that is too short for a window (of a tokenizer of whole sentences, say) is read from its start again.
    tokens = (tokens * math.ceil(rows * body / len(tokens)))[: rows * body]
    return torch.tensor([[*reader.bos, *tokens[body * row : body * (row + 1)]] for row in range(rows)])


def _chat(reader: Reader, question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return str(reader.tokenizer.apply_chat_template(turns, tokenize=False)).removeprefix(reader.bos_text)


def apply_recipe(
    model: Any,
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    kept: Path | None = None,
    keep: bool = False,
    progress: Progress = unseen,
) -> GridFact | None:
    """Turn the mapped `model` of `checkpoint` into what `recipe` makes of it, in place.

    Layers that were trained for four bits keep their integers, whatever is chosen for others, and are done first:
    returns what was found of them. Nothing moves to or from such layers.

    Calibration takes minutes where a model is large: its integers are read from `kept` where that file exists, and with
    `keep` written there else. It must be of this very checkpoint, recipe and code, as what lies in the folder of a
    fingerprint is.
    """
    register_operators()
    found, head_scales = keep_grids(model, checkpoint, recipe), None
    if recipe.calibrated and (schemes := layer_schemes(model, recipe)):
        if kept is not None and kept.exists():
            head_scales = _restore(model, schemes, kept)
        else:
            balances = recipe.balanced and found is None
            balance = Balance(model, recipe, checkpoint.family, schemes) if balances else None
            calibrate(model, schemes, readings(checkpoint), progress, balance)
            head_scales = None if balance is None else balance.head_scales
            if kept is not None and keep:
                _keep(model, schemes, [] if balance is None else balance.norms, head_scales, kept)
    quantize(model, recipe, checkpoint.family, head_scales)
    return found


_HEAD_SCALES = "head.scales"


def _keep(
    model: Any, schemes: dict[str, Scheme], norms: list[str], head_scales: torch.Tensor | None, path: Path
) -> None:
    tensors = {f"{name}.weight": model.get_submodule(name).weight for name in norms}
    if head_scales is not None:
        tensors[_HEAD_SCALES] = head_scales
    for name in schemes:
        made = model.get_submodule(name)
        tensors |= {f"{name}.values": made.values, f"{name}.scales": made.scales}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _restore(model: Any, schemes: dict[str, Scheme], path: Path) -> torch.Tensor | None:
    """Put what `path` keeps into `model`; returns the scales that its last norm was divided by."""
    tensors = load_file(path)
    for name, scheme in schemes.items():
        bits = int(scheme.weight.removeprefix("int"))
        values, scales = tensors.pop(f"{name}.values"), tensors.pop(f"{name}.scales")
        replace(model, name, DynamicLinear(name, values, scales, bits, scheme.group))
    head_scales = tensors.pop(_HEAD_SCALES, None)
    for name, weight in tensors.items():
        norm = model.get_submodule(name.removesuffix(".weight"))
        norm.weight = torch.nn.Parameter(weight, requires_grad=False)
    return head_scales


class Balance:
    """Where scales move in a model, and what was moved so far.

    `norms` are the paths of the norms that were divided, `head_scales` what the weights of the head and the table it is
    tied to are to be multiplied by, None before the end.
    """

    def __init__(self, model: Any, recipe: Recipe, family: Family, schemes: dict[str, Scheme]) -> None:
        self.model, self.offset = model, family.norm_offset
        self.norms: list[str] = []
        self.head_scales: torch.Tensor | None = None
        self.schemes = dict(schemes)
        if recipe.head is not None and recipe.head.activation:
            self.schemes["lm_head"] = recipe.head
        # A reader in floating point loses nothing by its input, and one without a scheme has none to weigh.
        folds = [fold for fold in folds_of(model, family.folds) if all(name in self.schemes for name in fold.readers)]
        self._of = {name: fold for fold in folds for name in fold.readers}
        self._moved: dict[Fold, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def move(self, name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What layer `name` reads instead of x [..., in], and what its columns are multiplied by: float32 [in].

        The first reader of an input settles it for all: its source is divided then.
        """
        fold = self._of.get(name)
        if fold is None:
            return x, None
        if fold not in self._moved:
            self._moved[fold] = (x, *self._divided(fold, x))
        seen, divided, scales = self._moved[fold]
        assert seen is x, f"{name} reads another input than {fold.readers[0]}"
        if name == fold.readers[-1]:
            # The text is large, and nobody asks again.
            self._moved[fold] = (torch.empty(0),) * 3
        return divided, scales

    def end(self, x: torch.Tensor) -> None:
        """Divide the last norm, whose output x [..., width] the head reads."""
        if "lm_head" in self._of:
            _, self.head_scales = self._divided(HEAD, x)

    def _divided(self, fold: Fold, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        source, heads = self.model.get_submodule(fold.source), heads_of(self.model, fold)
        weights = [self.model.get_submodule(name).weight for name in fold.readers]
        scales = scales_for(x, weights, [self.schemes[name] for name in fold.readers], heads)
        if isinstance(source, DynamicLinear):
            rows = scales if source.scales.ndim == 1 else scales.unsqueeze(1)
            source.scales = (source.scales.float() / rows).to(source.scales.dtype)
        else:
            divide(source, scales, self.offset)
            if not isinstance(source, torch.nn.Linear):
                self.norms.append(fold.source)
        spread = spread_heads(scales, heads, x.shape[-1])
        return x / spread, spread


@torch.no_grad()  # type: ignore[untyped-decorator]
def calibrate(
    model: Any,
    schemes: dict[str, Scheme],
    tokens: torch.Tensor,
    progress: Progress = unseen,
    balance: Balance | None = None,
    observe: Observer | None = None,
) -> None:
    """Replace the linear layers of `model` that `schemes` names, in the order the text reaches them.

    `tokens` int64 [windows, length] run through the text model together. A layer that they never reach (there is none
    in the families that are known) keeps its weights. `observe` sees each layer before the text goes on through it.
    """
    seen = _Inputs()
    done: list[str] = []

    def reached(name: str, scheme: Scheme) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            x, scales = (x, None) if balance is None else balance.move(name, x)
            weight = model.get_submodule(name).weight.float()
            weight = weight if scales is None else weight * scales
            made = _rounded(name, weight, scheme, seen.of(x))
            if observe is not None:
                observe(made, weight, x)
            replace(model, name, made)
            done.append(name)
            progress("quantize", len(done) / len(schemes))
            result: torch.Tensor = made(x)
            return result

        return forward

    widen(model)
    for name, scheme in schemes.items():
        model.get_submodule(name).forward = reached(name, scheme)
    try:
        last = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        if balance is not None:
            balance.end(last)
    finally:
        narrow(model)


@dataclass(frozen=True)
class Factored:
    """What rounding asks of the Hessian of an input, with its columns in `order` [in] from the most to the least
    important: its `diagonal` [in] as it was, and the upper Cholesky `factor` [in, in] of its damped inverse."""

    diagonal: torch.Tensor
    order: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, hessian: torch.Tensor) -> Factored:
        """Of the sum of x x^T [in, in] over all tokens."""
        diagonal = hessian.diagonal().clone()
        order = torch.argsort(diagonal, descending=True, stable=True)
        return cls(diagonal, order, _inverse_factor(hessian[order][:, order]))


class _Inputs:
    """The input that was seen last: queries, keys and values ask for the same one, and so do gate and up."""

    def __init__(self) -> None:
        self.x: torch.Tensor | None = None
        self.factored: Factored | None = None

    def of(self, x: torch.Tensor) -> Factored:
        """The Hessian of x [..., in], factored once for all layers that read it one after the other."""
        if self.factored is None or x is not self.x:
            # The last one is let go first: of a wide layer each takes as much as its weights.
            self.x, self.factored = x, None
            self.factored = Factored.of(hessian(x))
        return self.factored


def hessian(x: torch.Tensor) -> torch.Tensor:
    """The sum of x x^T over all tokens of x [..., in], as the kernel sees them: float32 [in, in]."""
    width = x.shape[-1]
    total = torch.zeros(width, width)
    for rows in x.reshape(-1, width).split(1024):
        seen = to_int8_and_back(rows)
        total.addmm_(seen.T, seen)
    return total


def _rounded(name: str, weight: torch.Tensor, scheme: Scheme, inputs: Factored) -> DynamicLinear:
    if scheme.weight == "int8":
        _, scales = symmetric(weight, 8, None)
        return DynamicLinear(name, gptq(weight, inputs, scales, 8), scales.squeeze(-1), 8, None)
    # Each column weighs as much as comes into it: the mean square of its input.
    _, scales = symmetric(weight, 4, scheme.group, torch.bfloat16, inputs.diagonal)
    values = gptq(weight, inputs, scales.float(), 4)
    return DynamicLinear(name, pack(values, low_first=True), scales, 4, scheme.group)


def gptq(weight: torch.Tensor, inputs: Factored, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers int8 [rows, columns] for float32 `weight`, given scales [rows, groups] and the Hessian of its inputs.

    Columns go from the most to the least important; groups keep their scales, so the order costs nothing at run time.
    """
    rows, columns = weight.shape
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    size = columns // scales.shape[1]
    order, upper = inputs.order, inputs.factor
    left = weight[:, order].T.contiguous()
    by_column = scales[:, order // size].T.contiguous()
    values = torch.empty(columns, rows, dtype=torch.int8)
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        block, errors = left[first:last], torch.empty(last - first, rows)
        for row in range(last - first):
            at = first + row
            rounded = (block[row] / by_column[at]).round_().clamp_(low, high)
            values[at] = rounded.to(torch.int8)
            errors[row] = torch.addcmul(block[row], rounded, by_column[at], value=-1).div_(upper[at, at])
            block[row + 1 :].addr_(upper[at, at + 1 : last], errors[row], alpha=-1)
        left[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
    result = torch.empty(columns, rows, dtype=torch.int8)
    result[order] = values
    return result.T.contiguous()


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of a damped Hessian [columns, columns].

    On one thread: of all that is done here only a factorization rounds in another order on another number of them, and
    the file is to be the same on every machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _factored(hessian)
    finally:
        torch.set_num_threads(threads)


def _factored(hessian: torch.Tensor) -> torch.Tensor:
    damping = DAMPING * float(hessian.diagonal().mean()) or 1.0
    for _ in range(6):
        damped = hessian.clone()
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return factor
        # Inputs that are sums of one another, to the precision of float32.
        damping *= 10
    raise ArithmeticError("the inputs of a layer have no invertible covariance")
