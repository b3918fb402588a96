"""What differs between model families: class names, where tables lie, and the shape of their caches.

A family is one small module that defines `FAMILY`; everything else in hubpub reads it from here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from hubpub.model.folds import Fold
from hubpub.model.patches import Patch
from hubpub.model.shape import Shape


def _unchanged(_: Any) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Family:
    """One architecture. Class names are of transformers; paths are of modules of the text model.

    `architecture` is the class that a published checkpoint names, `text_class` the one of its text decoder with a head
    (the same where a checkpoint holds nothing else), `text_prefix` where the checkpoint keeps the text weights,
    `ignored` a pattern of stored text tensors that the model does not use.

    `license` is what every model of the family was published under, None where each has its own. `begins_with_bos` says
    whether the models want <bos> at the start of a text, None where that is as their tokenizers have it.

    `folds` are the places in a layer where a scale per channel may move from what is computed to who reads it, and no
    output changes. `norm_offset` is what its norms add to their stored weight.

    While `last_token_only(model)` is open, layers without keys and values of their own compute just a prompt's last
    token; while `cheap_operators(model)` is open, the model computes the same by operators that cost less to run.
    """

    name: str
    architecture: str
    text_class: str
    text_prefix: str
    shape: Callable[[Any], Shape]
    patches: tuple[Patch, ...]
    license: str | None
    begins_with_bos: bool | None
    folds: tuple[Fold, ...]
    norm_offset: float = 0.0
    embedding: str = "model.embed_tokens"
    per_layer_embedding: str | None = None
    ignored: str = r"(?!)"
    last_token_only: Callable[[Any], AbstractContextManager[None]] = _unchanged
    cheap_operators: Callable[[Any], AbstractContextManager[None]] = _unchanged

    @property
    def multimodal(self) -> bool:
        """Whether a checkpoint holds more than the text decoder."""
        return self.architecture != self.text_class


def family(name: str) -> Family:
    """The family called `name`, e.g. "gemma3n"."""
    found = import_module(f"{__name__}.{name}").FAMILY
    assert isinstance(found, Family)
    return found


FAMILIES = tuple(sorted(module.name for module in iter_modules(__path__)))
