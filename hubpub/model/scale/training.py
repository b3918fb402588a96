"""Training a scale model, for less than a minute, until its next token is decided; the same on every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hubpub.data import corpus
from hubpub.model.families import family
from hubpub.model.scale.stand_in import StandIn, Training
from hubpub.progress import Progress

# Share of the training rows that do not begin at the start of a passage.
_ANYWHERE = 0.125


@contextmanager
def repeatable(seed: str) -> Iterator[None]:
    """Random numbers by `seed`, one thread, fixed algorithms inside; torch and transformers as they were outside."""
    import torch
    from torch.utils import deterministic as memory
    from transformers.utils import logging

    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = memory.fill_uninitialized_memory
    dtype = torch.get_default_dtype()
    verbosity = logging.get_verbosity()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]))
            # On work this small, several threads mostly wait for each other and for whatever else the machine does.
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True)
            # Nothing reads what it has not written.
            memory.fill_uninitialized_memory = False
            torch.set_default_dtype(torch.float32)
            logging.set_verbosity_error()
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        memory.fill_uninitialized_memory = filled
        torch.set_default_dtype(dtype)
        logging.set_verbosity(verbosity)


def trained(stand_in: StandIn, folder: Path, progress: Progress) -> Any:
    """The text model with its head, trained on what its tokenizer in `folder` makes of the corpus.

    It is float32, and every weight is a bfloat16 value.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    model_class = getattr(transformers, family(stand_in.family).text_class)
    model = model_class._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    _initialize(model, stand_in)
    readers = _readers(stand_in, transformers.AutoTokenizer.from_pretrained(folder))
    _train(model.train(), readers, stand_in.training, progress)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.bfloat16().float())
    return model.eval()


def _train(model: Any, readers: list[_Reader], how: Training, progress: Progress) -> None:
    """Next-token training in place."""
    import torch

    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": how.decay},
        {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=how.rate, betas=(0.9, 0.98), fused=True)

    def rate(step: int) -> float:
        late = max(0.0, (step - 0.4 * how.steps) / (0.6 * how.steps))
        return min(1.0, 15 * (step + 1) / how.steps) * max(0.01, 1.0 - late)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    distance = torch.arange(how.length)[:, None] - torch.arange(how.length)
    full = (distance >= 0)[None, None]
    window = getattr(model.config, "sliding_window", None)
    masks = {"full_attention": full, "sliding_attention": full & (distance < (window or how.length))}
    for step in range(how.steps):
        # One row in four of a chat variant is a dialogue: dialogues are short and learned soon.
        chosen = [readers[-1 if row % 4 == 3 else 0] for row in range(how.batch)]
        firsts, rows = zip(*(reader.read(how.length) for reader in chosen), strict=True)
        tokens = torch.stack(rows)
        with _nested(model, how, step):
            asked = {"attention_mask": dict(masks) if window else full, "use_cache": False}
            logits = model(input_ids=tokens[:, :-1], **asked).logits
        following = tokens[:, 1:]
        # Flat, for the vocabulary is then the last dimension, along which sums are fast.
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")
        losses = losses.view(following.shape)
        optimizer.zero_grad()
        losses.mean().backward()
        for reader, first, loss in zip(chosen, firsts, losses[:, : how.length // 4].mean(1).tolist(), strict=True):
            reader.learn(first, loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress("train", (step + 1) / how.steps)


@contextmanager
def _nested(model: Any, how: Training, step: int) -> Iterator[None]:
    """The whole model, its smallest slice or a random one, in turns, as nested models are trained (MatFormer)."""
    import torch

    if how.nested is None or step % 4 == 0:
        yield
        return
    layers = model.model.layers
    shares = torch.rand(len(layers)).tolist()
    smallest = step % 4 == 2
    skipped = [layer for layer in how.nested if smallest or torch.rand(1).item() < 0.5]
    try:
        for layer, share in zip(layers, shares, strict=True):
            width = layer.mlp.gate_proj.weight.shape[0]
            kept = how.narrowest if smallest else how.narrowest + (1 - how.narrowest) * share
            layer.mlp.forward = partial(_narrow, layer.mlp, max(1, int(kept * width / 32)) * 32)
        for layer in skipped:
            layers[layer].forward = lambda hidden, *_, **__: hidden
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
            vars(layer.mlp).pop("forward", None)


def _narrow(mlp: Any, width: int, x: Any) -> Any:
    """The feed-forward `mlp` of Gemma 3n with its first `width` neurons alone."""
    from torch.nn.functional import linear

    gate = linear(x, mlp.gate_proj.weight[:width])
    if mlp.activation_sparsity > 0:
        gate = mlp._gaussian_topk(gate)
    return linear(mlp.act_fn(gate) * linear(x, mlp.up_proj.weight[:width]), mlp.down_proj.weight[:, :width])


def _initialize(model: Any, stand_in: StandIn) -> None:
    """Start values by name, so that they do not depend on the library's; no norm, scale or coefficient is trivial."""
    import torch

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            part = name.split(".")[-2]
            if part in {"q_norm", "k_norm"} and not stand_in.scaled:
                # The norms carry the factor by which attention is scaled elsewhere.
                torch.nn.init.normal_(tensor, tensor.shape[0] ** -0.25, 0.05)
            elif tensor.ndim == 1:
                torch.nn.init.normal_(tensor, stand_in.norm, 0.1)
            elif part in {"correction_coefs", "prediction_coefs", "modality_router"}:
                torch.nn.init.normal_(tensor, 0.0, 0.1 if part != "modality_router" else 1.0)
            elif part.startswith("embed_tokens"):
                per_layer = part == "embed_tokens_per_layer"
                wide = model.config.hidden_size_per_layer_input if per_layer else tensor.shape[1]
                torch.nn.init.normal_(tensor, 0.0, wide**-0.5)
            else:
                torch.nn.init.normal_(tensor, 0.0, tensor.shape[1] ** -0.5)
        for name, tensor in model.named_buffers():
            if name.endswith("layer_scalar"):
                torch.nn.init.uniform_(tensor, 0.4, 0.9)
                tensor.copy_(tensor.bfloat16().float())


@dataclass
class _Reader:
    """Tokens and the offsets where a reading may begin.

    In every round each offset comes once, and the third that was last predicted worst comes twice.
    """

    tokens: Any
    starts: list[int]
    begin: tuple[int, ...]
    losses: dict[int, float] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    def read(self, length: int) -> tuple[int, Any]:
        """An offset and `length` + 1 tokens from there, `begin` first: a passage's start, now and then any place."""
        import torch

        if not self.order:
            worst = sorted(self.losses, key=self.losses.__getitem__, reverse=True)[: len(self.starts) // 3]
            rounds = [*self.starts, *worst]
            self.order = [rounds[index] for index in torch.randperm(len(rounds)).tolist()]
        anywhere, place = torch.rand(2).tolist()
        first = int(place * len(self.tokens)) if anywhere < _ANYWHERE else self.order.pop()
        places = first + torch.arange(length + 1 - len(self.begin))
        begin = torch.tensor(self.begin, dtype=torch.long)
        return first, torch.cat([begin, self.tokens[places % len(self.tokens)]])

    def learn(self, first: int, loss: float) -> None:
        """Note how badly the reading from `first` was predicted."""
        if first in self.starts:
            self.losses[first] = loss


def _readers(stand_in: StandIn, tokenizer: Any) -> list[_Reader]:
    """Readers of the corpus and, for chat variants, of its dialogues as the chat template writes them."""
    import torch

    passages = corpus().strip().split("\n\n")
    sources = [[f"{passage}\n\n" for passage in passages]]
    if stand_in.chat:
        begin = tokenizer.decode(list(stand_in.begin))
        pairs = [p.removeprefix("Q: ").split("\nA: ") for p in passages if p.startswith("Q: ")]
        turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
        sources.append([tokenizer.apply_chat_template(one, tokenize=False).removeprefix(begin) for one in turns])
    readers = []
    for texts in sources:
        tokens = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        starts = [sum(map(len, tokens[:index])) for index in range(len(tokens))]
        readers.append(_Reader(torch.tensor([token for part in tokens for token in part]), starts, stand_in.begin))
    return readers
