"""Stand-ins for Llama's architecture as SmolLM2 has it: 135M, and 360M with a wider feed-forward."""

from __future__ import annotations

from typing import Any

from hubpub.model.scale.byte_tokenizer import ByteTokenizer
from hubpub.model.scale.stand_in import CONTEXT, StandIn, Training

WIDTHS = {"135M": 256, "360M": 384}
VOCABULARY = 1024
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>")


def stand_in(size: str | None, *, chat: bool) -> StandIn:
    """The stand-in for `size`, "135M" or "360M"."""
    size = size if size in WIDTHS else "135M"
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[0], "unk_token": SPECIAL[0]}
    if chat:
        names |= {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2]}
    ids = {key.replace("token", "token_id"): SPECIAL.index(name) for key, name in names.items() if key != "unk_token"}
    return StandIn(
        name=f"SmolLM2-{size}",
        family="llama",
        config={**_config(WIDTHS[size]), **ids},
        generation=dict(ids),
        tokenizer=ByteTokenizer(VOCABULARY, SPECIAL, names),
        chat_template=_CHAT_TEMPLATE if chat else None,
        # Without a sliding window, distances are only known as far as they were read.
        training=Training(steps=300, batch=4, length=320, rate=1e-2),
        begin=(),
        norm=1.0,
        scaled=True,
    )


# Turns as SmolLM2 writes them: a conversation without a system turn gets one.
_CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou answer questions.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def _config(width: int) -> dict[str, Any]:
    """config.json in the form of the published checkpoints, without the ids of special tokens."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 96,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": width,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }
