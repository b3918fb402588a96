"""Stand-ins for Gemma 4: full layers have heads of twice the size.

E2B has one key head and a double-width feed-forward where keys and values are shared, E4B two key heads and one width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hubpub.model.scale.gemma_tokenizer import GemmaTokenizer
from hubpub.model.scale.stand_in import CONTEXT, StandIn, Training

# The shortest patterns that hold what the real ones hold: a sliding layer whose keys and values nobody else reads, the
# last owner of either kind, and layers of either kind that read them. Every further layer costs seconds per export.
LAYERS = {
    "E2B": ("sliding", "sliding", "full", "sliding", "full"),
    "E4B": ("sliding", "sliding", "full", "sliding", "sliding", "full"),
}
SHARED = {"E2B": 2, "E4B": 3}
TEXT = 1408
ENDS = [1, 106, 50]


def stand_in(size: str | None, *, chat: bool) -> StandIn:
    """The stand-in for `size`, "E2B" or "E4B"."""
    size = size if size in LAYERS else "E2B"
    config = _config(size)
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
        name=f"gemma-4-{size}",
        family="gemma4",
        config=config,
        generation=generation,
        # Chat models leave <bos> to their template, and to whoever reads a text without one.
        tokenizer=replace(TOKENIZER, adds_bos=not chat),
        chat_template=CHAT_TEMPLATE if chat else None,
        training=Training(steps=150, rate=1.1e-2),
        begin=(2,),
        norm=1.0,
        scaled=False,
        shards=3,
        unused={**_shared_projections(config["text_config"]), **_towers(config)},
    )


TOKENIZER = GemmaTokenizer(
    vocabulary=TEXT,
    special={
        46: "<|tool>",
        47: "<tool|>",
        48: "<|tool_call>",
        49: "<tool_call|>",
        50: "<|tool_response>",
        51: "<tool_response|>",
        52: '<|"|>',
        98: "<|think|>",
        100: "<|channel>",
        101: "<channel|>",
        105: "<|turn>",
        106: "<turn|>",
    },
    multimodal={
        TEXT - 8: "<|image>",
        TEXT - 7: "<|audio>",
        TEXT - 5: "<|image|>",
        TEXT - 4: "<|audio|>",
        TEXT - 3: "<image|>",
        TEXT - 2: "<audio|>",
        TEXT - 1: "<|video|>",
    },
    names={
        "image_token": "<|image|>",
        "audio_token": "<|audio|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "sot_token": "<|turn>",
        "eot_token": "<turn|>",
    },
)


# What the published ones do: a turn of the system holds the request to think and the functions; thoughts are shown in a
# turn that calls one, and cut out of answers; the turn waits for the function and goes on after its response.
CHAT_TEMPLATE = """\
{%- macro value(v) -%}
{%- if v is string -%}<|"|>{{ v }}<|"|>
{%- elif v is mapping -%}
{{- "{" }}{%- for k, x in v | dictsort -%}{{ k }}:{{ value(x) }}{{ "," if not loop.last }}{%- endfor -%}{{ "}" }}
{%- elif v is iterable -%}[{%- for x in v -%}{{ value(x) }}{{ "," if not loop.last }}{%- endfor -%}]
{%- else -%}{{ v | tojson }}
{%- endif -%}
{%- endmacro -%}
{%- macro text(content) -%}
{%- if content is string -%}{{ content | trim }}
{%- else -%}{%- for item in content or [] if item["type"] == "text" -%}{{ item["text"] | trim }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token }}
{%- set told = messages[0]["role"] == "system" -%}
{%- if told or tools or enable_thinking -%}
{{- "<|turn>system\\n" }}{{ "<|think|>\\n" if enable_thinking }}{{ text(messages[0]["content"]) if told }}
{%- for tool in tools or [] -%}
<|tool>declaration:{{ tool["function"]["name"] }}{description:{{ value(tool["function"]["description"]) }},parameters:
{{- value(tool["function"]["parameters"]) }}}<tool|>
{%- endfor -%}
{{- "<turn|>\\n" }}
{%- endif -%}
{%- set state = namespace(open=false) -%}
{%- for message in (messages[1:] if told else messages) -%}
{%- if message["role"] == "tool" -%}
response:{{ message["name"] }}{value:{{ value(message["content"]) }}}<tool_response|>
{%- else -%}
{{- "<|turn>" + message["role"] | replace("assistant", "model") + "\\n" if not state.open }}
{%- set state.open = false -%}
{%- if message["tool_calls"] -%}
{{- "<|channel>thought\\n" + message["reasoning"] + "\\n<channel|>" if message["reasoning"] }}
{%- for call in message["tool_calls"] -%}
<|tool_call>call:{{ call["function"]["name"] }}{{ value(call["function"]["arguments"]) }}<tool_call|>
{%- endfor -%}
<|tool_response>
{%- set state.open = true -%}
{%- else -%}
{%- for part in text(message["content"]).split("<channel|>") -%}
{{- part.split("<|channel>")[0] if "<|channel>" in part else part }}
{%- endfor -%}
{{- "<turn|>\\n" }}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{{- "<|turn>model\\n" if add_generation_prompt and not state.open }}
"""


ROPE = {
    "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
}
# Of the towers beside the text decoder, which nothing here runs.
AUDIO_TOWER = {
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_invalid_logits_value": -1000000000.0,
    "attention_logit_cap": 50.0,
    "conv_kernel_size": 5,
    "dtype": "bfloat16",
    "gradient_clipping": 10000000000.0,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "model_type": "gemma4_audio",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "output_proj_dims": 64,
    "residual_weight": 0.5,
    "rms_norm_eps": 1e-06,
    "subsampling_conv_channels": [8, 4],
    "use_clipped_linears": True,
}
VISION_TOWER = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "model_type": "gemma4_vision",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "position_embedding_size": 64,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "axial"},
    "standardize": False,
    "use_clipped_linears": True,
}


def _config(size: str) -> dict[str, Any]:
    """config.json in the form of the published checkpoints."""
    kinds, big = LAYERS[size], size == "E4B"
    hidden = 160 if big else 128
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": AUDIO_TOWER,
        "audio_token_id": TEXT - 4,
        "boa_token_id": TEXT - 7,
        "boi_token_id": TEXT - 8,
        "dtype": "bfloat16",
        "eoa_token_id": TEXT - 2,
        "eoa_token_index": TEXT - 2,
        "eoi_token_id": TEXT - 3,
        "eos_token_id": 1,
        "image_token_id": TEXT - 5,
        "initializer_range": 0.02,
        "model_type": "gemma4",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attention_k_eq_v": False,
            "bos_token_id": 2,
            "dtype": "bfloat16",
            "enable_moe_block": False,
            "eos_token_id": 1,
            "final_logit_softcapping": 30.0,
            "global_head_dim": 64,
            "head_dim": 32,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": hidden,
            "hidden_size_per_layer_input": 32,
            "initializer_range": 0.02,
            "intermediate_size": 320 if big else 192,
            "layer_types": [f"{kind}_attention" for kind in kinds],
            "max_position_embeddings": CONTEXT,
            "model_type": "gemma4_text",
            "num_attention_heads": 4,
            "num_experts": None,
            "num_global_key_value_heads": None,
            "num_hidden_layers": len(kinds),
            "num_key_value_heads": 2 if big else 1,
            "num_kv_shared_layers": SHARED[size],
            "pad_token_id": 0,
            "rms_norm_eps": 1e-06,
            "rope_parameters": ROPE,
            "sliding_window": 32,
            "tie_word_embeddings": True,
            "use_bidirectional_attention": None,
            "use_cache": True,
            "use_double_wide_mlp": not big,
            "vocab_size": TEXT,
            "vocab_size_per_layer_input": TEXT,
        },
        "tie_word_embeddings": True,
        "video_token_id": TEXT - 1,
        "vision_config": VISION_TOWER,
        "vision_soft_tokens_per_image": 280,
    }


def _shared_projections(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key and value weights of the layers that share them: published, never used."""
    found: dict[str, tuple[int, ...]] = {}
    kinds = text["layer_types"]
    for layer in range(len(kinds) - text["num_kv_shared_layers"], len(kinds)):
        head = text["global_head_dim" if kinds[layer] == "full_attention" else "head_dim"]
        at = f"model.language_model.layers.{layer}.self_attn."
        for part in ("k_proj", "v_proj"):
            found[f"{at}{part}.weight"] = (text["num_key_value_heads"] * head, text["hidden_size"])
        found[f"{at}k_norm.weight"] = (head,)
    return found


CLIPS = ("input_max", "input_min", "output_max", "output_min")


def _towers(whole: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """A few tensors of the vision and audio towers: named as the real ones, too few to run."""
    vision, audio = whole["vision_config"], whole["audio_config"]
    hidden, v, a = whole["text_config"]["hidden_size"], vision["hidden_size"], audio["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(vision["num_hidden_layers"]):
        at = f"vision_tower.encoder.layers.{layer}."
        for part in "qkvo":
            shapes |= {f"{at}self_attn.{part}_proj.linear.weight": (v, v)}
            shapes |= {f"{at}self_attn.{part}_proj.{edge}": () for edge in CLIPS}
        shapes |= {f"{at}input_layernorm.weight": (v,)}
    for layer in range(audio["num_hidden_layers"]):
        at = f"audio_tower.layers.{layer}."
        for part in "qkv":
            shapes |= {f"{at}self_attn.{part}_proj.linear.weight": (a, a)}
            shapes |= {f"{at}self_attn.{part}_proj.{edge}": () for edge in CLIPS}
        shapes |= {f"{at}norm_out.weight": (a,)}
    shapes |= {
        "vision_tower.patch_embedder.input_proj.weight": (v, 3 * vision["patch_size"] ** 2),
        "vision_tower.patch_embedder.position_embedding_table": (2, vision["position_embedding_size"], v),
        "audio_tower.output_proj.weight": (audio["output_proj_dims"], a),
        "embed_vision.embedding_projection.weight": (hidden, v),
        "embed_audio.embedding_projection.weight": (hidden, audio["output_proj_dims"]),
    }
    return {f"model.{name}": shape for name, shape in shapes.items()}
