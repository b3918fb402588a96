"""hubpub: export, measure, document and publish on-device language models to the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubpub.hub.text_decoder import load_text_decoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_text_decoder"]


def __getattr__(name: str) -> Any:
    # Loading a model needs torch; importing hubpub does not.
    if name == "load_text_decoder":
        from hubpub.hub.text_decoder import load_text_decoder

        return load_text_decoder
    raise AttributeError(f"module 'hubpub' has no attribute {name!r}")
