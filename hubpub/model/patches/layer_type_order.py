"""Gemma's text models compute rotary embeddings by walking over a set of layer types.

The order of a set of strings is that of their hashes, which differ from process to process: the same model, exported
twice, is two programs whose operators stand in another order. Sorted, it is one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

from hubpub.model.patches import Patch, expect, replaced

URL = "https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/{0}/modeling_{0}.py"
_EMBEDS = "position_embeddings[layer_type] = self.rotary_emb("


def _patch(model: str, text_model: str, walk: str, cure: Callable[[Any, Any], AbstractContextManager[None]]) -> Patch:
    """The patch of `text_model`, whose `forward` walks over `walk`."""
    name = f"{model}-layer-type-order"

    def target() -> tuple[Any, Any]:
        module = import_module(f"transformers.models.{model}.modeling_{model}")
        return module, getattr(module, text_model)

    def defective() -> bool:
        forward = target()[1].forward
        expect(name, forward, parameters=list(inspect.signature(forward).parameters), source=[_EMBEDS])
        return f"for layer_type in {walk}:" in inspect.getsource(forward)

    return Patch(
        name=name,
        defect=f"{text_model}.forward walks over a set of strings, so that operators stand in another order every time",
        url=URL.format(model),
        package="transformers",
        versions=">=5.23,<5.24",
        defective=defective,
        apply=lambda: cure(*target()),
    )


def _sorted(items: Iterable[Any] = ()) -> dict[Any, None]:
    """What stands for a set in a module of upstream: the same elements, in order."""
    return dict.fromkeys(sorted(items))


def _in_module(module: Any, _: Any) -> AbstractContextManager[None]:
    # `forward` looks the name up among those of its module before the built-in ones.
    return replaced(module, "set", _sorted)


def _in_model(_: Any, text_model: Any) -> AbstractContextManager[None]:
    # Models that exist already hold the set: a property of the class comes before what an instance holds.
    return replaced(text_model, "unique_layer_types", property(lambda self: _sorted(self.config.layer_types)))


GEMMA3 = _patch("gemma3", "Gemma3TextModel", "set(self.config.layer_types)", _in_module)
GEMMA3N = _patch("gemma3n", "Gemma3nTextModel", "set(self.config.layer_types)", _in_module)
GEMMA4 = _patch("gemma4", "Gemma4TextModel", "self.unique_layer_types", _in_model)
