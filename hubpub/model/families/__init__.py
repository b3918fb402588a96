"""What differs between model families: class names, where tables lie, and the shape of their caches.

A family is one small module that defines `FAMILY`; everything else in hubpub reads it from here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubpub.model.decoder import Shape
    from hubpub.model.patches import Patch


@dataclass(frozen=True)
class Family:
    """One architecture. Class names are of transformers; paths are of modules below the text model.

    `architecture` is the published multimodal class, `text_class` its text-only sibling, `text_prefix` where the
    checkpoint keeps the text weights, `ignored` a pattern of stored text tensors that the model does not use. While
    `last_token_only(model)` is open, layers without keys and values of their own compute just a prompt's last token;
    while `cheaper(model)` is open, the model computes the same with operators that cost less in the runtime.
    """

    name: str
    model_type: str
    architecture: str
    text_class: str
    text_prefix: str
    ignored: str
    embedding: str
    per_layer_embedding: str
    shape: Callable[[Any], Shape]
    patches: Callable[[], tuple[Patch, ...]]
    last_token_only: Callable[[Any], AbstractContextManager[None]]
    cheaper: Callable[[Any], AbstractContextManager[None]]


def family(name: str) -> Family:
    """The family called `name`, e.g. "gemma3n"."""
    found = import_module(f"hubpub.model.families.{name}").FAMILY
    assert isinstance(found, Family)
    return found


FAMILIES = ("gemma3n", "gemma4")
