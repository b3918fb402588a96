"""Stand-ins for Gemma 3's text-only sizes: 270M, and 1B with a wider feed-forward."""

from __future__ import annotations

from typing import Any

from hubpub.model.scale.gemma_tokenizer import GemmaTokenizer, chat_template
from hubpub.model.scale.stand_in import CONTEXT, StandIn, Training

WIDTHS = {"270M": 256, "1B": 384}
VOCABULARY = 1376
ENDS = [1, 106]


def stand_in(size: str | None, *, chat: bool) -> StandIn:
    """The stand-in for `size`, "270M" or "1B"."""
    size = size if size in WIDTHS else "270M"
    config = _config(WIDTHS[size])
    if chat:
        config["eos_token_id"] = ENDS
    generation: dict[str, Any] = {
        "bos_token_id": 2,
        "eos_token_id": ENDS if chat else 1,
        "pad_token_id": 0,
        "cache_implementation": "hybrid",
        "do_sample": True,
        "top_k": 64,
        "top_p": 0.95,
    }
    return StandIn(
        name=f"gemma-3-{size}",
        family="gemma3",
        config=config,
        generation=generation,
        tokenizer=GemmaTokenizer(VOCABULARY, special={105: "<start_of_turn>", 106: "<end_of_turn>"}),
        chat_template=chat_template("<start_of_turn>", "<end_of_turn>") if chat else None,
        training=Training(steps=150),
        begin=(2,),
        # What is stored is the difference from one.
        norm=0.0,
        scaled=True,
    )


def _config(width: int) -> dict[str, Any]:
    """config.json in the form of the published checkpoints, with layers of either kind."""
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "final_logit_softcapping": None,
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 96,
        "initializer_range": 0.02,
        "intermediate_size": width,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "max_position_embeddings": CONTEXT,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 32,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 32,
        "torch_dtype": "bfloat16",
        "use_bidirectional_attention": False,
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }
