"""Scale models: small checkpoints with the architecture, layer pattern and file layout of the real ones.

A rehearsal exports these in place of gigabytes of weights. Each is trained on the spot for less than a minute, so that
its greedy answers are decided and a wrong program shows in its text; the result is cached and the same on every run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hubpub.data import corpus
from hubpub.model import scale_tokenizer
from hubpub.model.scale_tokenizer import Layout

FamilyName = str
Progress = Callable[[str, float], None]

# Counts up when the making itself changes in a way that no other part of the key shows.
_MAKING = 1
_SHARDS = 3
_CONTEXT = 4096
# Share of the training rows that do not begin at the start of a passage.
_ANYWHERE = 0.125


@dataclass(frozen=True)
class Training:
    """How a scale model is trained: `batch` readings of `length` tokens a step."""

    steps: int
    batch: int = 8
    length: int = 128
    rate: float = 8e-3
    decay: float = 0.5


# Gemma 3n's four parallel streams make a step of it dearer.
_TRAINING: dict[FamilyName, Training] = {"gemma3n": Training(steps=150), "gemma4": Training(steps=190)}


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of one scale checkpoint."""

    variant: str
    family: FamilyName
    config: dict[str, Any]
    generation: dict[str, Any]
    layout: Layout
    chat_template: str | None
    training: Training
    seed: int
    corpus_sha256: str
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """12 hex digits that change whenever the checkpoint would."""
        text = json.dumps({"making": _MAKING, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def chat(self) -> bool:
        """Whether the variant is tuned for chat."""
        return self.chat_template is not None


def build(variant: str, family: FamilyName, cache: Path, *, progress: Progress | None = None) -> Path:
    """The checkpoint folder of `variant` at scale, made below `cache` unless it is there already.

    `progress` is told a stage ("train", "write") and the finished fraction of the whole. Building is safe against being
    killed and against another process that builds the same model at the same time.
    """
    return _build(_plan(variant, family), cache, progress)


@cache
def scale_key(variant: str, family: FamilyName) -> str:
    """12 hex digits over configuration, text, seed, training and library versions: the cache key of a scale model."""
    return _plan(variant, family).key


def _plan(variant: str, family: FamilyName, training: Training | None = None) -> Plan:
    big, chat = "E4B" in variant, variant.endswith("-it")
    config = (_gemma3n if family == "gemma3n" else _gemma4)(big)
    ends = {"gemma3n": [1, 106], "gemma4": [1, 106, 50]}[family]
    generation: dict[str, Any] = {
        "bos_token_id": 2,
        "eos_token_id": ends if chat else 1,
        "pad_token_id": 0,
        "cache_implementation": "hybrid",
        "do_sample": True,
        "top_k": 64,
        "top_p": 0.95,
    }
    if chat:
        config["eos_token_id"] = ends
    layout = _LAYOUTS[family]
    return Plan(
        variant=variant,
        family=family,
        config=config,
        generation=generation,
        layout=layout,
        chat_template=_chat_template(*layout.turns, system=family == "gemma4") if chat else None,
        training=training or _TRAINING[family],
        seed=int.from_bytes(hashlib.sha256(variant.removesuffix("-it").encode()).digest()[:4]),
        corpus_sha256=hashlib.sha256(corpus().encode()).hexdigest(),
        versions={name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
    )


def _build(plan: Plan, cache: Path, progress: Progress | None) -> Path:
    target = cache / f"{plan.variant}-{plan.key}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f".{target.name}.lock"):
        if target.is_dir():
            return target
        for stale in cache.glob(f".{target.name}.tmp*"):
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp", dir=cache))
        try:
            told = progress or (lambda stage, fraction: None)
            tuned = None if plan.chat else _build(_plan(f"{plan.variant}-it", plan.family, plan.training), cache, told)
            _make(plan, work, told, tuned)
            work.chmod(0o755)
            _publish(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def _publish(work: Path, target: Path) -> None:
    try:
        work.rename(target)
    except OSError:
        # Where no lock is to be had, another process may have been faster: its folder holds the same.
        if not target.is_dir():
            raise


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One builder at a time; the lock goes away with its process. Without fcntl, both build and the rename decides."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(plan: Plan, folder: Path, progress: Progress, tuned: Path | None) -> None:
    """Every file of the checkpoint; a base variant has the weights of its tuned sibling and its own settings."""
    tokenizer = scale_tokenizer.train(corpus(), plan.layout)
    scale_tokenizer.write(folder, tokenizer, plan.layout, plan.chat_template, _CONTEXT)
    _json(folder / "config.json", plan.config)
    _json(folder / "generation_config.json", plan.generation)
    if tuned is not None:
        for path in tuned.glob("model*"):
            shutil.copy2(path, folder)
        return
    with _quiet_torch(plan):
        model = _trained(plan, folder, progress)
        progress("write", 0.98)
        _write_weights(plan, model, folder)
    progress("write", 1.0)


@contextmanager
def _quiet_torch(plan: Plan) -> Iterator[None]:
    """Fixed seed, thread count and algorithms inside; torch and transformers as they were found outside."""
    import torch
    from transformers.utils import logging

    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    dtype = torch.get_default_dtype()
    verbosity = logging.get_verbosity()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(plan.seed)
            # On work this small, several threads mostly wait for each other and for whatever else the machine does.
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True)
            torch.set_default_dtype(torch.float32)
            logging.set_verbosity_error()
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_default_dtype(dtype)
        logging.set_verbosity(verbosity)


def _trained(plan: Plan, folder: Path, progress: Progress) -> Any:
    """The trained text model with its head, fp32; every weight is a bf16 value."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    name = {"gemma3n": "Gemma3nForCausalLM", "gemma4": "Gemma4ForCausalLM"}[plan.family]
    model = getattr(transformers, name)._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    _initialize(model)
    readers = _readers(plan, transformers.AutoTokenizer.from_pretrained(folder))
    _train(model.train(), readers, plan.training, lambda fraction: progress("train", 0.98 * fraction))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.bfloat16().float())
    return model.eval()


def _train(model: Any, readers: list[_Reader], how: Training, progress: Callable[[float], None]) -> None:
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
    masks = {"full_attention": full, "sliding_attention": full & (distance < model.config.sliding_window)}
    for step in range(how.steps):
        # One row in four of a chat variant is a dialogue: dialogues are short and learned soon.
        chosen = [readers[-1 if row % 4 == 3 else 0] for row in range(how.batch)]
        firsts, rows = zip(*(reader.read(how.length) for reader in chosen), strict=True)
        tokens = torch.stack(rows)
        logits = model(input_ids=tokens[:, :-1], attention_mask=dict(masks), use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")
        optimizer.zero_grad()
        losses.mean().backward()
        for reader, first, loss in zip(chosen, firsts, losses[:, : how.length // 4].mean(1).tolist(), strict=True):
            reader.learn(first, loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress((step + 1) / how.steps)


def _initialize(model: Any) -> None:
    """Start values by name, so that they do not depend on the library's; no norm, scale or coefficient is trivial."""
    import torch

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            part = name.split(".")[-2]
            if part in {"q_norm", "k_norm"}:
                # Attention is not scaled by head size in this family: the norms carry that factor.
                torch.nn.init.normal_(tensor, tensor.shape[0] ** -0.25, 0.05)
            elif tensor.ndim == 1:
                torch.nn.init.normal_(tensor, 1.0, 0.1)
            elif part in {"correction_coefs", "prediction_coefs", "modality_router"}:
                torch.nn.init.normal_(tensor, 0.0, 0.1 if part != "modality_router" else 1.0)
            elif part.startswith("embed_tokens"):
                per_layer = model.config.hidden_size_per_layer_input
                wide = per_layer if part == "embed_tokens_per_layer" else tensor.shape[1]
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
    losses: dict[int, float] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    def read(self, length: int) -> tuple[int, Any]:
        """An offset, and <bos> with `length` tokens from there: the start of a passage, now and then any place."""
        import torch

        if not self.order:
            worst = sorted(self.losses, key=self.losses.__getitem__, reverse=True)[: len(self.starts) // 3]
            rounds = [*self.starts, *worst]
            self.order = [rounds[index] for index in torch.randperm(len(rounds)).tolist()]
        anywhere, place = torch.rand(2).tolist()
        first = int(place * len(self.tokens)) if anywhere < _ANYWHERE else self.order.pop()
        return first, torch.cat([torch.tensor([2]), self.tokens[(first + torch.arange(length)) % len(self.tokens)]])

    def learn(self, first: int, loss: float) -> None:
        """Note how badly the reading from `first` was predicted."""
        if first in self.starts:
            self.losses[first] = loss


def _readers(plan: Plan, tokenizer: Any) -> list[_Reader]:
    """Readers of the corpus and, for chat variants, of its dialogues in the family's turn format."""
    import torch

    passages = corpus().strip().split("\n\n")
    sources = [[f"{passage}\n\n" for passage in passages]]
    if plan.chat:
        start, end = plan.layout.turns
        pairs = [p.removeprefix("Q: ").split("\nA: ") for p in passages if p.startswith("Q: ")]
        sources.append([f"{start}user\n{q}{end}\n{start}model\n{a}{end}\n" for q, a in pairs])
    readers = []
    for texts in sources:
        tokens = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        starts = [sum(map(len, tokens[:index])) for index in range(len(tokens))]
        readers.append(_Reader(torch.tensor([token for part in tokens for token in part]), starts))
    return readers


def _write_weights(plan: Plan, model: Any, folder: Path) -> None:
    """bf16 shards and their index, named as in the published checkpoints."""
    import torch
    from safetensors.torch import save_file

    tensors = {
        f"model.language_model.{name.removeprefix('model.')}": tensor.bfloat16()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    for name, shape in (*_unused(plan, tensors), *_towers(plan)):
        if name.endswith("norm.weight"):
            tensors[name] = torch.empty(shape).normal_(1.0, 0.1).bfloat16()
        else:
            tensors[name] = torch.empty(shape).normal_(0.0, 0.05).bfloat16()
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    total = sum(sizes.values())
    weight_map: dict[str, str] = {}
    done = 0
    for name in sorted(tensors):
        shard = min(_SHARDS, 1 + done * _SHARDS // total)
        weight_map[name] = f"model-{shard:05}-of-{_SHARDS:05}.safetensors"
        done += sizes[name]
    for shard_name in sorted(set(weight_map.values())):
        part = {name: tensors[name].contiguous() for name, where in weight_map.items() if where == shard_name}
        save_file(part, folder / shard_name, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _json(folder / "model.safetensors.index.json", index)


def _unused(plan: Plan, tensors: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Key and value weights of the layers that share them: published, never used."""
    text = plan.config["text_config"]
    kinds = text["layer_types"]
    first = len(kinds) - text["num_kv_shared_layers"]
    found = []
    for layer in range(first, len(kinds)):
        owner = kinds.index(kinds[layer])
        for part in ("k_proj", "v_proj", "k_norm"):
            like = tensors[f"model.language_model.layers.{owner}.self_attn.{part}.weight"]
            found.append((f"model.language_model.layers.{layer}.self_attn.{part}.weight", tuple(like.shape)))
    return found


def _towers(plan: Plan) -> list[tuple[str, tuple[int, ...]]]:
    """A few tensors of the vision and audio towers: named as the real ones, too few to run."""
    vision, audio = plan.config["vision_config"], plan.config["audio_config"]
    hidden, v, a = plan.config["text_config"]["hidden_size"], vision["hidden_size"], audio["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    if plan.family == "gemma3n":
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
    else:
        for layer in range(vision["num_hidden_layers"]):
            at = f"vision_tower.encoder.layers.{layer}."
            for part in "qkvo":
                shapes |= {f"{at}self_attn.{part}_proj.linear.weight": (v, v)}
                shapes |= {f"{at}self_attn.{part}_proj.{edge}": () for edge in _CLIPS}
            shapes |= {f"{at}input_layernorm.weight": (v,)}
        for layer in range(audio["num_hidden_layers"]):
            at = f"audio_tower.layers.{layer}."
            for part in "qkv":
                shapes |= {f"{at}self_attn.{part}_proj.linear.weight": (a, a)}
                shapes |= {f"{at}self_attn.{part}_proj.{edge}": () for edge in _CLIPS}
            shapes |= {f"{at}norm_out.weight": (a,)}
        shapes |= {
            "vision_tower.patch_embedder.input_proj.weight": (v, 3 * vision["patch_size"] ** 2),
            "vision_tower.patch_embedder.position_embedding_table": (2, vision["position_embedding_size"], v),
            "audio_tower.output_proj.weight": (audio["output_proj_dims"], a),
            "embed_vision.embedding_projection.weight": (hidden, v),
            "embed_audio.embedding_projection.weight": (hidden, audio["output_proj_dims"]),
        }
    return [(f"model.{name}", shape) for name, shape in shapes.items()]


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


# The shortest patterns that hold what the real ones hold: a sliding layer whose keys and values nobody else reads, the
# last owner of either kind, and layers of either kind that read them. Every further layer costs seconds per export.
_E2B_LAYERS = ("sliding", "sliding", "full", "sliding", "full")
_E4B_LAYERS = ("sliding", "sliding", "full", "sliding", "sliding", "full")
_SHARED = {len(_E2B_LAYERS): 2, len(_E4B_LAYERS): 3}

_TEXT_3N, _SOFT = 1376, 32
_IMAGES_3N, _AUDIO_3N = _TEXT_3N, _TEXT_3N + _SOFT
_TEXT_4 = 1408

_CLIPS = ("input_max", "input_min", "output_max", "output_min")

_LAYOUTS: dict[FamilyName, Layout] = {
    "gemma3n": Layout(
        vocabulary=_TEXT_3N,
        special={105: "<start_of_turn>", 106: "<end_of_turn>"},
        multimodal={
            _TEXT_3N - 2: "<start_of_image>",
            _TEXT_3N - 1: "<start_of_audio>",
            _IMAGES_3N: "<end_of_image>",
            _IMAGES_3N + 1: "<image_soft_token>",
            _AUDIO_3N: "<end_of_audio>",
            _AUDIO_3N + 1: "<audio_soft_token>",
        },
        names={
            "image_token": "<image_soft_token>",
            "audio_token": "<audio_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "boa_token": "<start_of_audio>",
            "eoa_token": "<end_of_audio>",
        },
        turns=("<start_of_turn>", "<end_of_turn>"),
    ),
    "gemma4": Layout(
        vocabulary=_TEXT_4,
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
            _TEXT_4 - 8: "<|image>",
            _TEXT_4 - 7: "<|audio>",
            _TEXT_4 - 5: "<|image|>",
            _TEXT_4 - 4: "<|audio|>",
            _TEXT_4 - 3: "<image|>",
            _TEXT_4 - 2: "<audio|>",
            _TEXT_4 - 1: "<|video|>",
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
        turns=("<|turn>", "<turn|>"),
    ),
}


def _chat_template(start: str, end: str, *, system: bool) -> str:
    """Gemma's turn format. Without a system turn of its own, a system message opens the first user turn."""
    text = (
        "{%- macro text(content) -%}"
        "{%- if content is string -%}{{ content | trim }}"
        "{%- else -%}{%- for item in content -%}{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}"
        "{%- endif -%}{%- endfor -%}{%- endif -%}"
        "{%- endmacro -%}\n"
        "{{ bos_token }}"
    )
    if system:
        body = (
            "{%- for message in messages -%}"
            "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
            f"{{{{ '{start}' + role + '\\n' + text(message['content']) + '{end}\\n' }}}}"
            "{%- endfor -%}\n"
        )
    else:
        body = (
            "{%- set lead = namespace(text='') -%}"
            "{%- for message in messages -%}"
            "{%- if message['role'] == 'system' and loop.first -%}"
            "{%- set lead.text = text(message['content']) + '\\n\\n' -%}"
            "{%- else -%}"
            "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
            f"{{{{ '{start}' + role + '\\n' + lead.text + text(message['content']) + '{end}\\n' }}}}"
            "{%- set lead.text = '' -%}"
            "{%- endif -%}{%- endfor -%}\n"
        )
    return text + body + f"{{%- if add_generation_prompt -%}}{{{{ '{start}model\\n' }}}}{{%- endif -%}}\n"


def _gemma3n(big: bool) -> dict[str, Any]:
    """config.json in the form of the published Gemma 3n checkpoints; E4B has a wider feed-forward."""
    kinds = _E4B_LAYERS if big else _E2B_LAYERS
    layers = len(kinds)
    width = 384 if big else 256
    return {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "audio_config": {
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
            "vocab_offset": _AUDIO_3N,
            "vocab_size": _SOFT,
        },
        "audio_soft_tokens_per_image": 188,
        "audio_token_id": _AUDIO_3N + 1,
        "boa_token_id": _TEXT_3N - 1,
        "boi_token_id": _TEXT_3N - 2,
        "eoa_token_id": _AUDIO_3N,
        "eoi_token_id": _IMAGES_3N,
        "eos_token_id": 1,
        "image_token_id": _IMAGES_3N + 1,
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
            "max_position_embeddings": _CONTEXT,
            "model_type": "gemma3n_text",
            "num_attention_heads": 4,
            "num_hidden_layers": layers,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": _SHARED[layers],
            "query_pre_attn_scalar": 32,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": 32,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": _TEXT_3N + 2 * _SOFT,
            "vocab_size_per_layer_input": _TEXT_3N,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {
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
            "vocab_offset": _IMAGES_3N,
            "vocab_size": _SOFT,
        },
        "vision_soft_tokens_per_image": 256,
    }


def _gemma4(big: bool) -> dict[str, Any]:
    """config.json in the form of the published Gemma 4 checkpoints, with the layer pattern of `_gemma3n`.

    Full layers have heads of twice the size; E2B has one key head and a double-width feed-forward where keys and values
    are shared, E4B two key heads and one width everywhere.
    """
    kinds = _E4B_LAYERS if big else _E2B_LAYERS
    hidden = 160 if big else 128
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": {
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
        },
        "audio_token_id": _TEXT_4 - 4,
        "boa_token_id": _TEXT_4 - 7,
        "boi_token_id": _TEXT_4 - 8,
        "dtype": "bfloat16",
        "eoa_token_id": _TEXT_4 - 2,
        "eoa_token_index": _TEXT_4 - 2,
        "eoi_token_id": _TEXT_4 - 3,
        "eos_token_id": 1,
        "image_token_id": _TEXT_4 - 5,
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
            "max_position_embeddings": _CONTEXT,
            "model_type": "gemma4_text",
            "num_attention_heads": 4,
            "num_experts": None,
            "num_global_key_value_heads": None,
            "num_hidden_layers": len(kinds),
            "num_key_value_heads": 2 if big else 1,
            "num_kv_shared_layers": _SHARED[len(kinds)],
            "pad_token_id": 0,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "full_attention": {
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1000000.0,
                    "rope_type": "proportional",
                },
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
            "sliding_window": 32,
            "tie_word_embeddings": True,
            "use_bidirectional_attention": None,
            "use_cache": True,
            "use_double_wide_mlp": not big,
            "vocab_size": _TEXT_4,
            "vocab_size_per_layer_input": _TEXT_4,
        },
        "tie_word_embeddings": True,
        "video_token_id": _TEXT_4 - 1,
        "vision_config": {
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
        },
        "vision_soft_tokens_per_image": 280,
    }
