"""TransformerLens on a loaded text decoder: hooks and caches at every layer, the weights as they are.

TransformerLens (4.3) knows Gemma 3n as the multimodal class alone, under `model.language_model`. Its adapter describes
the text decoder all the same: here it is told where that lies in a model of text only. Other families it knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def bridge(model: Any, tokenizer: Any = None) -> TransformerBridge:
    """A TransformerBridge around what `load_text_decoder` returned; `tokenizer` of transformers, None for tokens only.

    The model itself is bridged, not a copy of it. The residual stream of a Gemma 3n layer is its active AltUp stream,
    one of four. Needs the package transformer-lens 4.3 or newer, which hubpub does not install.
    """
    from transformer_lens.model_bridge import TransformerBridge

    _register_gemma3n()
    return TransformerBridge.boot_transformers(
        model.config.name_or_path or type(model).__name__, hf_model=model, tokenizer=tokenizer, dtype=model.dtype
    )


def _register_gemma3n() -> None:
    from transformer_lens.factories import architecture_adapter_factory as factory
    from transformer_lens.model_bridge.supported_architectures import Gemma3nArchitectureAdapter

    name = "Gemma3nForCausalLM"
    if name in factory.SUPPORTED_ARCHITECTURES:
        return

    class TextAdapter(Gemma3nArchitectureAdapter):
        required_libraries: ClassVar[list[str]] = []

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self._reprefix_components("model.language_model.", "model.")

    # Which architectures there are is asked in two places.
    factory.SUPPORTED_ARCHITECTURES[name] = TextAdapter
    factory.ArchitectureAdapterFactory.register_adapter(name, TextAdapter)
