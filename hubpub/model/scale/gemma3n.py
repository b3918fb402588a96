"""Stand-ins for Gemma 3n: E2B and E4B differ in depth and in the width of the feed-forward."""

from __future__ import annotations

from typing import Any

from hubpub.model.scale.gemma_tokenizer import GemmaTokenizer, chat_template
from hubpub.model.scale.stand_in import CONTEXT, StandIn, Training
from hubpub.slices import Slice, Whole
from hubpub.slices import stand_in as stand_in_slice

# The shortest patterns that hold what the real ones hold: a sliding layer whose keys and values nobody else reads, the
# last owner of either kind, and layers of either kind that read them. Every further layer costs seconds per export.
LAYERS = {
    "E2B": ("sliding", "sliding", "full", "sliding", "full"),
    "E4B": ("sliding", "sliding", "full", "sliding", "sliding", "full"),
}
SHARED = {"E2B": 2, "E4B": 3}

# The layers of E4B that each layer of its stand-in stands for: the published slices leave out 20 to 24.
GROUPS = (range(7), range(7, 14), range(14, 20), range(20, 25), range(25, 30), range(30, 35))

# Ids of text, then of images, then of audio.
TEXT, SOFT = 1376, 32
IMAGES, AUDIO = TEXT, TEXT + SOFT
ENDS = [1, 106]


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
        name=f"gemma-3n-{size}",
        family="gemma3n",
        config=config,
        generation=generation,
        tokenizer=TOKENIZER,
        chat_template=chat_template("<start_of_turn>", "<end_of_turn>") if chat else None,
        # Four parallel streams make a step dearer than that of other families.
        training=Training(steps=200, nested=(3,)) if size == "E4B" else Training(steps=110, rate=1.1e-2),
        begin=(2,),
        norm=1.0,
        scaled=False,
        shards=3,
        unused={**_shared_projections(config["text_config"]), **_towers(config)},
    )


def sliced(part: Slice, size: str | None) -> Slice:
    """What stands in for the slice `part` of E4B: a slice of the stand-in for E4B."""
    assert size == "E4B"
    whole = Whole.of(_config("E4B")["text_config"])
    return stand_in_slice(part, GROUPS, whole.widths, list(whole.readers))


TOKENIZER = GemmaTokenizer(
    vocabulary=TEXT,
    special={105: "<start_of_turn>", 106: "<end_of_turn>"},
    multimodal={
        TEXT - 2: "<start_of_image>",
        TEXT - 1: "<start_of_audio>",
        IMAGES: "<end_of_image>",
        IMAGES + 1: "<image_soft_token>",
        AUDIO: "<end_of_audio>",
        AUDIO + 1: "<audio_soft_token>",
    },
    names={
        "image_token": "<image_soft_token>",
        "audio_token": "<audio_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "boa_token": "<start_of_audio>",
        "eoa_token": "<end_of_audio>",
    },
)


# Of the towers beside the text decoder, which nothing here runs.
AUDIO_TOWER = {
    "conf_attention_chunk_size": 12,
    "conf_attention_context_left": 13,
    "conf_attention_context_right": 0,
    "conf_attention_logit_cap": 50.0,
    "conf_conv_kernel_size": 5,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 2,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "gradient_clipping": 10000000000.0,
    "hidden_size": 32,
    "input_feat_size": 128,
    "model_type": "gemma3n_audio",
    "rms_norm_eps": 1e-06,
    "sscp_conv_channel_size": [8, 4],
    "torch_dtype": "bfloat16",
    "vocab_offset": AUDIO,
    "vocab_size": SOFT,
}
VISION_TOWER = {
    "architecture": "mobilenetv5_300m_enc",
    "do_pooling": False,
    "hidden_size": 64,
    "initializer_range": 0.02,
    "label_names": ["LABEL_0", "LABEL_1"],
    "model_args": None,
    "model_type": "gemma3n_vision",
    "num_classes": 2,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "bfloat16",
    "vocab_offset": IMAGES,
    "vocab_size": SOFT,
}


def _config(size: str) -> dict[str, Any]:
    """config.json in the form of the published checkpoints."""
    kinds = LAYERS[size]
    layers = len(kinds)
    width = 384 if size == "E4B" else 256
    return {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "audio_config": AUDIO_TOWER,
        "audio_soft_tokens_per_image": 188,
        "audio_token_id": AUDIO + 1,
        "boa_token_id": TEXT - 1,
        "boi_token_id": TEXT - 2,
        "eoa_token_id": AUDIO,
        "eoi_token_id": IMAGES,
        "eos_token_id": 1,
        "image_token_id": IMAGES + 1,
        "initializer_range": 0.02,
        "model_type": "gemma3n",
        "text_config": {
            "activation_sparsity_pattern": [0.95] * 2 + [0.0] * (layers - 2),
            "altup_active_idx": 0,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_lr_multiplier": 1.0,
            "altup_num_inputs": 4,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "final_logit_softcapping": 30.0,
            "head_dim": 32,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 128,
            "hidden_size_per_layer_input": 32,
            "initializer_range": 0.02,
            "intermediate_size": [width] * layers,
            "laurel_rank": 32,
            "layer_types": [f"{kind}_attention" for kind in kinds],
            "max_position_embeddings": CONTEXT,
            "model_type": "gemma3n_text",
            "num_attention_heads": 4,
            "num_hidden_layers": layers,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": SHARED[size],
            "query_pre_attn_scalar": 32,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": 32,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": TEXT + 2 * SOFT,
            "vocab_size_per_layer_input": TEXT,
        },
        "torch_dtype": "bfloat16",
        "vision_config": VISION_TOWER,
        "vision_soft_tokens_per_image": 256,
    }


def _shared_projections(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key and value weights of the layers that share them: published, never used."""
    head, keys = text["head_dim"], text["num_key_value_heads"] * text["head_dim"]
    layers = range(text["num_hidden_layers"] - text["num_kv_shared_layers"], text["num_hidden_layers"])
    found: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        at = f"model.language_model.layers.{layer}.self_attn."
        found |= {f"{at}{part}.weight": (keys, text["hidden_size"]) for part in ("k_proj", "v_proj")}
        found[f"{at}k_norm.weight"] = (head,)
    return found


def _towers(whole: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """A few tensors of the vision and audio towers: named as the real ones, too few to run."""
    vision, audio = whole["vision_config"], whole["audio_config"]
    hidden, v, a = whole["text_config"]["hidden_size"], vision["hidden_size"], audio["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= {
        "vision_tower.timm_model.conv_stem.conv.weight": (16, 3, 3, 3),
        "vision_tower.timm_model.conv_stem.conv.bias": (16,),
        "vision_tower.timm_model.blocks.0.0.conv_exp.weight": (32, 16, 3, 3),
        "vision_tower.timm_model.msfa.ffn.pw_exp.conv.weight": (v, 32, 1, 1),
        "vision_tower.timm_model.msfa.norm.weight": (v,),
        "audio_tower.subsample_conv_projection.conv_0.conv.weight": (8, 1, 3, 3),
        "audio_tower.subsample_conv_projection.input_proj_linear.weight": (a, 32),
    }
    for layer in range(audio["conf_num_hidden_layers"]):
        at = f"audio_tower.conformer.{layer}."
        shapes |= {f"{at}attention.attn.{part}_proj.weight": (a, a) for part in "qkv"}
        shapes |= {f"{at}ffw_layer_start.ffw_layer_1.weight": (4 * a, a), f"{at}norm.weight": (a,)}
    for name, config in (("embed_vision", vision), ("embed_audio", audio)):
        shapes |= {
            f"{name}.embedding.weight": (config["vocab_size"], config["hidden_size"]),
            f"{name}.hard_embedding_norm.weight": (config["hidden_size"],),
            f"{name}.soft_embedding_norm.weight": (config["hidden_size"],),
            f"{name}.embedding_projection.weight": (hidden, config["hidden_size"]),
        }
    return {f"model.{name}": shape for name, shape in shapes.items()}
