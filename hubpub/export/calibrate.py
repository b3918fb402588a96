"""Rounding that knows what a layer will see: GPTQ (Frantar et al., 2022, arXiv:2210.17323), one layer after the other.

A text runs through the model once. When it reaches a linear layer, the products of its inputs with one another are
summed up (the Hessian of the squared error of its output), its weights are rounded column by column, and what each
rounding does to the output is made up for by the columns that are still to come. The text goes on through the rounded
layer: the next ones see its error, and that of activations in eight bits, and answer for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hubpub.config import Recipe, Scheme
from hubpub.data import calibration
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
    returns what was found of them.

    Calibration takes minutes where a model is large: its integers are read from `kept` where that file exists, and with
    `keep` written there else. It must be of this very checkpoint, recipe and code, as what lies in the folder of a
    fingerprint is.
    """
    register_operators()
    found = keep_grids(model, checkpoint, recipe)
    if recipe.calibrated and (schemes := layer_schemes(model, recipe)):
        if kept is not None and kept.exists():
            _restore(model, schemes, kept)
        else:
            calibrate(model, schemes, readings(checkpoint), progress)
            if kept is not None and keep:
                _keep(model, schemes, kept)
    quantize(model, recipe, checkpoint.family)
    return found


def _keep(model: Any, schemes: dict[str, Scheme], path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
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


def _restore(model: Any, schemes: dict[str, Scheme], path: Path) -> None:
    tensors = load_file(path)
    for name, scheme in schemes.items():
        bits = int(scheme.weight.removeprefix("int"))
        replace(
            model, name, DynamicLinear(name, tensors[f"{name}.values"], tensors[f"{name}.scales"], bits, scheme.group)
        )


@torch.no_grad()  # type: ignore[untyped-decorator]
def calibrate(model: Any, schemes: dict[str, Scheme], tokens: torch.Tensor, progress: Progress = unseen) -> None:
    """Replace the linear layers of `model` that `schemes` names, in the order the text reaches them.

    `tokens` int64 [windows, length] run through the text model together. A layer that they never reach (there is none
    in the families that are known) keeps its weights.
    """
    seen = _Inputs()
    done: list[str] = []

    def reached(name: str, scheme: Scheme) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            made = _rounded(name, model.get_submodule(name).weight, scheme, seen.of(x))
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
        model.model(input_ids=tokens, use_cache=False)
    finally:
        narrow(model)


class _Inputs:
    """The Hessian of the input that was seen last: queries, keys and values ask for the same one."""

    def __init__(self) -> None:
        self.x: torch.Tensor | None = None
        self.hessian = torch.empty(0)

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of x x^T over all tokens of x [..., in], as the kernel sees them: float32 [in, in]."""
        if x is not self.x:
            self.x, width = x, x.shape[-1]
            self.hessian = torch.zeros(width, width)
            for rows in x.reshape(-1, width).split(1024):
                seen = to_int8_and_back(rows)
                self.hessian.addmm_(seen.T, seen)
        return self.hessian


def _rounded(name: str, stored: torch.Tensor, scheme: Scheme, hessian: torch.Tensor) -> DynamicLinear:
    weight = stored.float()
    if scheme.weight == "int8":
        _, scales = symmetric(weight, 8, None)
        return DynamicLinear(name, gptq(weight, hessian, scales, 8), scales.squeeze(-1), 8, None)
    # Each column weighs as much as comes into it: the mean square of its input.
    _, scales = symmetric(weight, 4, scheme.group, torch.bfloat16, hessian.diagonal())
    values = gptq(weight, hessian, scales.float(), 4)
    return DynamicLinear(name, pack(values, low_first=True), scales, 4, scheme.group)


def gptq(weight: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers int8 [rows, columns] for float32 `weight`, given scales [rows, groups] and the Hessian of its inputs.

    Columns go from the most to the least important; groups keep their scales, so the order costs nothing at run time.
    """
    rows, columns = weight.shape
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    size = columns // scales.shape[1]
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    upper = _inverse_factor(hessian[order][:, order])
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
