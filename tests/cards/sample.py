"""Made-up facts for tests of cards: shaped like those of a real release, with figures that are easy to tell apart."""

from __future__ import annotations

from hubpub.config import Card, Project
from hubpub.facts import (
    CardFacts,
    CellFacts,
    Context,
    FileFact,
    Gate,
    Greedy,
    KVCache,
    Layers,
    Logits,
    Method,
    Operators,
    Parameters,
    Parity,
    Patch,
    Program,
    PromptFormat,
    RunnerCheck,
    Sample,
    Sampling,
    Source,
    Speed,
    Stages,
    Tensor,
    Thinking,
    ToolTurns,
    Turns,
)

_SIZES = {
    "8da4w": 3_240_000_000,
    "8da4w-small": 2_590_000_000,
    "8da8w": 4_610_000_000,
    "int8": 4_590_000_000,
    "bf16": 8_870_000_000,
    "bf16-window": 8_860_000_000,
    "fp32": 17_740_000_000,
}
_KL = {
    "8da4w": 0.021,
    "8da4w-small": 0.034,
    "8da8w": 0.00052,
    "int8": 0.0004,
    "bf16": 0.0002,
    "bf16-window": 0.0002,
    "fp32": 3e-11,
}
_AGREEMENT = {"8da4w": 0.913, "8da4w-small": 0.881, "8da8w": 0.986, "int8": 0.989, "bf16": 0.983, "bf16-window": 0.983}
_TURNS = Turns(
    opening="<start_of_turn>user\n",
    reply="<end_of_turn>\n<start_of_turn>model\n",
    again="<end_of_turn>\n<start_of_turn>user\n",
    end="<end_of_turn>",
    system=("<start_of_turn>user\n", "\n\n"),
    thinking=Thinking(
        opening="<start_of_turn>think\n",
        reply="<end_of_turn>\n<start_of_turn>model\n",
        thoughts=("<thought>\n", "\n</thought>"),
    ),
    tools=ToolTurns(
        opening="<start_of_turn>user\nTools: get_weather(city)\n",
        call="<call>get_weather<end>",
        response="<response>sunny",
    ),
)
_SAMPLES = (
    Sample(prompt="What is the capital of France?", text="The capital of France is **Paris**.", ended=True),
    Sample(prompt="How do I make tea?", text="Boil water.\n```\nwait | <pour>", ended=False),
)
_SPEED = {"8da4w": 13.6, "8da4w-small": 13.1, "8da8w": 9.4, "int8": 2.2, "bf16": 1.9, "bf16-window": 0.06, "fp32": 1.1}


def cell(card: Card, recipe: str, summary: str, *, scale_model: bool = False) -> CellFacts:
    """One cell of `card`."""
    delegated = recipe.startswith("8da")
    weights = _SIZES.get(recipe, 5_000_000_000) - 1_000_000
    window = 32 if recipe.endswith("-window") else None
    tokens = Tensor(name="input0", dtype="int64", shape=(1, window or "1..2047"))
    position = Tensor(name="input1", dtype="int64", shape=(1,))
    forward = Method(
        name="forward",
        inputs=(tokens,) if window else (tokens, position),
        outputs=(Tensor(name="output0", dtype="float32", shape=(1, window, 262400) if window else (1, 262400)),),
        planned_bytes=227_000_000,
        instructions=1200,
        delegates=181 if delegated else 0,
        state_bytes=0 if window else 83_886_080,
    )
    return CellFacts(
        cell=f"{card.variant.name}/{recipe}",
        variant=card.variant.name,
        recipe=recipe,
        summary=summary,
        fingerprint="0123456789ab",
        file=FileFact(
            name=f"{card.variant.name}-{recipe}.pte",
            bytes=_SIZES.get(recipe, 5_000_000_000),
            sha256=(recipe.encode().hex() * 32)[:64],
        ),
        tokenizer=(
            FileFact(name="tokenizer.json", bytes=33_000_000, sha256="a" * 64),
            FileFact(name="chat_template.jinja", bytes=1500, sha256="b" * 64),
        ),
        source=Source(
            repo=card.variant.source,
            revision=card.variant.revision or "not pinned",
            license=card.variant.license,
            scale_model=scale_model,
            architecture="Gemma3nForConditionalGeneration",
            files=(FileFact(name="config.json", bytes=4000, sha256="c" * 64),),
        ),
        parameters=Parameters(
            total=4_435_182_688, embedding=537_395_200, per_layer_embedding=2_013_265_920, other=1_884_521_568
        ),
        layers=Layers(total=30, sliding=24, full=6, sliding_sharing_kv=8, full_sharing_kv=2),
        context=Context(exported=window or 2048, max_prefill=window or 2047, sliding_window=512, source=32768),
        vocabulary=262400,
        program=Program(
            methods=(forward,),
            metadata={
                "get_max_context_len": window or 2048,
                "get_bos_id": 2,
                "get_eos_ids": (1, 106),
                "use_kv_cache": not window,
            },
            backends={"XnnpackBackend": 181} if delegated else {},
            unpacked_constants=0,
            operators=Operators(
                delegated={"XNNFullyConnected": 301} if delegated else {},
                kernels={"aten::mul.out": 900}
                | ({} if window else {"llama::custom_sdpa.out": 30, "quantized_decomposed::embedding_byte.out": 2}),
            ),
            constant_bytes=weights if not delegated else weights // 2,
            delegate_bytes=0 if not delegated else weights - weights // 2,
            kv_cache=KVCache(bytes=0, dtype="", layers=0)
            if window
            else KVCache(bytes=83_886_080, dtype="float32", layers=20, shapes={"1x2048x2x256": 40}),
        ),
        parity=Parity(
            logits=Logits(
                tokens=window or 768,
                finite=True,
                top1_agreement=_AGREEMENT.get(recipe, 0.9995),
                kl_mean=_KL.get(recipe, 0.001),
                kl_p999=_KL.get(recipe, 0.001) * 20,
                error_max=2.1,
                prefill_error_max=0.08,
                perplexity=10.77,
                perplexity_original=10.591,
            ),
            greedy=Greedy(
                prompts=16, new_tokens=8 if window else 24, first_token=1.0, exact=0.75, mean_common_prefix=20.4
            ),
            runner=None
            if window
            else RunnerCheck(prompt="Bread needs", text=" only four things", tokens=4, matches_decode_loop=True),
            samples=() if window else _SAMPLES,
        ),
        speed=Speed(
            host="Example CPU, 8 cores, Linux",
            threads=4,
            load_seconds=9.8,
            prefill_tokens=window or 128,
            prefill_tokens_per_second=35.9,
            decode_tokens=4 if window else 31,
            decode_tokens_per_second=_SPEED.get(recipe, 5.0),
            peak_resident_bytes=_SIZES.get(recipe, 5_000_000_000) + 500_000_000,
        ),
        gates=(
            Gate(name="finite_logits", kind="min", limit=1, measured=1, passed=True),
            Gate(name="kl_mean", kind="max", limit=0.2, measured=_KL.get(recipe, 0.001), passed=True),
            Gate(name="top1_agreement", kind="min", limit=0.8, measured=0.913, passed=True),
            Gate(name="greedy_exact", kind="min", limit=0, measured=0.75, passed=True),
        ),
        patches=(
            Patch(name="gemma3n-gaussian-topk", defect="leaves aten.erfinv", url="https://example.org/p", applied=True),
            Patch(name="mended-upstream", defect="none any more", url="https://example.org/q", applied=False),
        ),
        toolchain={
            "hubpub": "0.1.0",
            "python": "3.11.7",
            "torch": "2.13.0",
            "executorch": "1.4.1",
            "torchao": "0.18.0",
            "transformers": "5.23.0",
            "platform": "Linux x86_64",
        },
        stages=Stages(load=5, quantize=60, export=30, lower=800, write=12, peak_resident_bytes=17_300_000_000),
        prompt=PromptFormat(bos="<bos>", turns=_TURNS) if card.variant.chat else PromptFormat(bos="<bos>"),
        sampling=Sampling(top_k=64, top_p=0.95),
    )


def facts(project: Project, card: Card, version: str = "v1.0.0", *, scale_model: bool = False) -> CardFacts:
    """A release of `card` in which every recipe was made."""
    return CardFacts(
        repo=f"someone/{card.repo}",
        version=version,
        variant=card.variant.name,
        cells=tuple(
            cell(card, name, project.recipe(card, name).summary, scale_model=scale_model)
            for name in card.export.recipes
        ),
    )


def one_card(project: Project) -> Card:
    """The card that most tests look at: a tuned model's, with every recipe."""
    return next(card for card in project.cards if card.repo == "gemma-3n-E2B-it-pte")
