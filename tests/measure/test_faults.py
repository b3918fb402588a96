"""Programs that are broken on purpose, and the gate that catches each.

One healthy program of a scale model serves all faults, for an export of each would take minutes:

- a damaged weight is planted in the bytes of the exported file, where the runtime will find it;
- a decoder that was built wrongly (rotary base, sliding window, softcap) is planted on the other side: the same weights
  under a config that differs. What is judged is how far program and source disagree, and a program that attends over
  32 tokens disagrees with a source that says 31 as one that attends over 31 does with a source that says 32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hubpub import data
from hubpub.config import Project, Recipe
from hubpub.errors import SourceError
from hubpub.export.cell import export
from hubpub.export.quantize import quantize, register_operators
from hubpub.facts import Gate, Logits, Parity, load
from hubpub.gates import evaluate_gates
from hubpub.matrix import cells, select
from hubpub.measure.drift import locate_drift
from hubpub.measure.inspect import inspect
from hubpub.measure.parity import EagerLogits, answered, compare_to_reference, measure
from hubpub.measure.runtime import Session
from hubpub.measure.scalars import scalars_of_model
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.loader import load as load_decoder
from hubpub.model.loader import load_mapped
from hubpub.model.scale import build
from hubpub.plan import plan
from hubpub.progress import Progress, unseen
from hubpub.workspace import Workspace

CELL = "gemma-3n-E2B-it/int8"
TOKENS = 160
PROMPTS = [prompt.text for prompt in data.prompts()[:2]]


@dataclass(frozen=True)
class Healthy:
    """A program that is as it should be, its source, its weights by name, and where references are kept."""

    pte: Path
    source: Path
    recipe: Recipe
    weights: dict[str, torch.Tensor]
    references: Path

    def gates(
        self, pte: Path | None = None, source: Path | None = None, progress: Progress = unseen
    ) -> dict[str, Gate]:
        """The gates of a program held against a source."""
        path, checkpoint = pte or self.pte, Checkpoint.open(source or self.source)
        parity = compare_to_reference(
            Session(path), checkpoint, self.recipe, (data.passage(), PROMPTS), TOKENS,
            self.references / checkpoint.folder.name, progress,
        )  # fmt: skip
        return self.judged(parity, path)

    def judged(self, parity: Parity, pte: Path) -> dict[str, Gate]:
        program = inspect(pte)
        vocabulary = program.metadata["get_vocab_size"]
        assert isinstance(vocabulary, int)
        return {gate.name: gate for gate in evaluate_gates(self.recipe.gates, parity, program, vocabulary)}

    def damaged(self, path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
        """A copy of the program at `path` in which the bytes of one weight are changed."""
        weight = self.weights[name].contiguous()
        wrong = change(weight.clone()).contiguous()
        before, after = (bytes(one.reshape(-1).view(torch.uint8).numpy()) for one in (weight, wrong))
        file = self.pte.read_bytes()
        assert file.count(before) == 1
        assert len(before) == len(after)
        path.write_bytes(file.replace(before, after))
        return path


@pytest.fixture(scope="module")
def healthy(project: Project, work: Path, scale_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Healthy:
    """An int8 program: its kernels compute in float32, so that it agrees with its own weights to the last digits."""
    (cell,) = select(cells(project), [CELL])
    (step,) = plan([cell], Workspace(project, work, rehearsal=True))
    source = build(cell.variant, scale_cache)
    folder = tmp_path_factory.mktemp("healthy")
    pte = step.pte
    if not pte.exists():
        pte = folder / cell.file
        export(
            Checkpoint.open(source), cell.recipe, pte, context=512, prefill=256, progress=lambda stage, fraction: None
        )
    register_operators()
    model = load_mapped(Checkpoint.open(source), dtype=torch.float32)
    quantize(model, cell.recipe, Checkpoint.open(source).family)
    return Healthy(pte, source, cell.recipe, model.state_dict(), folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On work this small, more threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def missed(gates: dict[str, Gate]) -> set[str]:
    return {name for name, gate in gates.items() if not gate.passed}


def other_config(healthy: Healthy, folder: Path, **changed: Any) -> Path:
    """The source again, with another config and the same weights."""
    shutil.copytree(healthy.source, folder, copy_function=lambda a, b: Path(b).symlink_to(a))
    config = json.loads((healthy.source / "config.json").read_text())
    assert config["text_config"].keys() >= changed.keys()
    config["text_config"].update(changed)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_nothing_is_wrong_with_the_healthy_program(healthy: Healthy) -> None:
    told: dict[str, list[float]] = {}
    gates = healthy.gates(progress=lambda stage, fraction: told.setdefault(stage, []).append(fraction))
    assert missed(gates) == set()
    assert gates["lowering_kl_mean"].measured < 1e-6
    # Every stage that takes long says how far it is, and never less than before.
    assert {"reference: text", "reference: bfloat16", "text", "text in pieces", "quantized weights: text"} <= {
        stage for stage, fractions in told.items() if len(set(fractions)) > 2
    }
    assert all(fractions == sorted(fractions) for fractions in told.values())


def test_of_a_long_text_every_second_token_is_compared(healthy: Healthy, monkeypatch: pytest.MonkeyPatch) -> None:
    def logits() -> Logits:
        checkpoint = Checkpoint.open(healthy.source)
        return compare_to_reference(
            Session(healthy.pte), checkpoint, healthy.recipe, (data.passage(), PROMPTS), TOKENS,
            healthy.references / checkpoint.folder.name, lambda stage, fraction: None,
        ).logits  # fmt: skip

    every = logits()
    monkeypatch.setattr("hubpub.measure.parity.COMPARED", TOKENS // 2)
    second = logits()
    assert (every.tokens, every.read, second.tokens, second.read) == (TOKENS, TOKENS, TOKENS // 2, TOKENS)
    assert 0 < second.kl_mean != every.kl_mean
    assert second.kl_mean == pytest.approx(every.kl_mean, rel=0.5)
    assert second.perplexity_original == pytest.approx(every.perplexity_original, rel=0.3)
    # The whole text is read in pieces either way.
    assert (second.prefill_rows, second.prefill_kl_mean) == (every.prefill_rows, every.prefill_kl_mean)


def test_answers_that_are_read_together_are_read_as_each_alone(healthy: Healthy) -> None:
    """Texts of several lengths lie beside each other, and no token sees what a shorter one is filled up with."""
    model = load_decoder(Checkpoint.open(healthy.source), dtype=torch.float32)
    texts = [list(range(200, 200 + length)) for length in (50, 9, 12, 31)]
    prompts, answers = [text[:5] for text in texts], [[*text[5:], 7] for text in texts]
    with torch.no_grad():
        for text, logits in zip(texts, answered(model, prompts, answers), strict=True):
            assert torch.allclose(logits, EagerLogits(model, text, None)(4, len(text)), atol=1e-4)


def doubled(scales: torch.Tensor) -> torch.Tensor:
    return scales * 2


def one_doubled(scales: torch.Tensor) -> torch.Tensor:
    scales[3] *= 2
    return scales


def one_nan(scales: torch.Tensor) -> torch.Tensor:
    scales[5] = float("nan")
    return scales


def one_bit(weight: torch.Tensor) -> torch.Tensor:
    weight[5, 7] ^= 1
    return weight


WEIGHTS = [
    ("model.layers.2.mlp.up_proj.values", torch.zeros_like, "lowering_kl_mean"),
    ("model.layers.1.self_attn.q_proj.values", lambda weight: weight.T, "lowering_kl_mean"),
    # Not of a projection whose result is normalized: there a factor changes nothing at all.
    ("model.layers.2.mlp.gate_proj.scales", doubled, "lowering_kl_mean"),
    ("model.layers.3.mlp.down_proj.scales", one_doubled, "lowering_kl_mean"),
    ("model.layers.4.mlp.gate_proj.scales", one_nan, "finite_logits"),
    # What no output shows beside the noise of a real model.
    ("model.layers.2.self_attn.q_proj.values", one_bit, "weights_stored"),
    ("model.layers.2.input_layernorm.weight", one_doubled, "weights_stored"),
]


@pytest.mark.parametrize(
    ("name", "change", "gate"), WEIGHTS, ids=["zeroed", "transposed", "scales", "scale", "nan", "bit", "norm"]
)
def test_a_damaged_weight(healthy: Healthy, tmp_path: Path, name: str, change: Any, gate: str) -> None:
    assert gate in missed(healthy.gates(pte=healthy.damaged(tmp_path / "wrong.pte", name, change)))


CONFIGS = [
    ({"sliding_window": 31}, "lowering_kl_mean"),
    ({"rope_theta": 10_000.0}, "lowering_kl_mean"),
    ({"rope_local_base_freq": 1_000_000.0}, "lowering_kl_mean"),
    # So wide that it changes nothing: the model without one.
    ({"final_logit_softcapping": 1e6}, "lowering_perplexity"),
]


@pytest.mark.parametrize(("changed", "gate"), CONFIGS, ids=["window", "rope full", "rope sliding", "softcap"])
def test_a_decoder_that_was_built_wrongly(healthy: Healthy, tmp_path: Path, changed: Any, gate: str) -> None:
    assert gate in missed(healthy.gates(source=other_config(healthy, tmp_path / "source", **changed)))


def test_a_window_that_is_off_by_one_is_seen_in_the_program_itself(healthy: Healthy, tmp_path: Path) -> None:
    """In a model with int8 activations one token more at a distance of hundreds is nothing beside their noise."""
    gates = healthy.gates(source=other_config(healthy, tmp_path / "source", sliding_window=31))
    assert not gates["sliding_window"].passed
    assert inspect(healthy.pte).sliding_window == 32


@pytest.mark.parametrize(
    "changed",
    [{"rms_norm_eps": 1e-4}, {"final_logit_softcapping": 29.0}, {"hidden_activation": "gelu"}, {}],
    ids=["epsilon", "softcap", "activation", "nothing"],
)
def test_a_number_that_is_another_is_seen_in_the_program_itself(
    healthy: Healthy, tmp_path: Path, changed: dict[str, Any]
) -> None:
    """Another epsilon, or the exact GELU for that by tanh, is far below the noise of int8 activations."""
    checkpoint = Checkpoint.open(other_config(healthy, tmp_path / "source", **changed))
    model = load_mapped(checkpoint, dtype=torch.float32)
    quantize(model, healthy.recipe, checkpoint.family)
    wanted = scalars_of_model(model, checkpoint.family.patches, window=False)
    assert (inspect(healthy.pte).scalars == wanted) == (not changed)


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (lambda pattern: [0.9 if share else 0.0 for share in pattern], "scalars"),
        (lambda pattern: [0.0 for _ in pattern], "scalars"),
        # As many layers as before, and as sparse: no number of the program is another.
        (lambda pattern: pattern[::-1], "lowering_kl_mean"),
    ],
    ids=["another share", "none", "other layers"],
)
def test_activations_that_are_sparse_otherwise(
    healthy: Healthy, tmp_path: Path, change: Callable[[list[float]], list[float]], gate: str
) -> None:
    config = json.loads((healthy.source / "config.json").read_text())["text_config"]
    wrong = change(config["activation_sparsity_pattern"])
    assert wrong != config["activation_sparsity_pattern"]
    assert gate in missed(
        healthy.gates(source=other_config(healthy, tmp_path / "s", activation_sparsity_pattern=wrong))
    )


def test_wrong_ends_of_a_text(healthy: Healthy, tmp_path: Path) -> None:
    """The source says where a text ends; the program's metadata must say the same."""
    source = other_config(healthy, tmp_path / "source")
    generation = json.loads((healthy.source / "generation_config.json").read_text())
    (source / "generation_config.json").unlink()
    (source / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [1, 107]}))
    assert missed(healthy.gates(source=source)) == {"eos_ids"}


@pytest.mark.parametrize("fault", ["another family's", "too many tokens"])
def test_a_tokenizer_that_does_not_fit(healthy: Healthy, tmp_path: Path, scale_cache: Path, fault: str) -> None:
    """A foreign tokenizer reads text as other ids; one with ids beyond the vocabulary makes a program read outside."""
    shipped = tmp_path / "tokenizer.json"
    tokenizer = json.loads((healthy.source / "tokenizer.json").read_text("utf-8"))
    vocab = tokenizer["model"]["vocab"]
    if fault == "too many tokens":
        vocab["▁zeppelin"] = 5000
    else:
        # Learned pieces under other ids: every one is known to the model, as something else.
        learned = [piece for piece, index in vocab.items() if index >= 700]
        turned = dict(zip(learned, [vocab[piece] for piece in learned[1:] + learned[:1]], strict=True))
        tokenizer["model"]["vocab"] = dict(sorted({**vocab, **turned}.items(), key=lambda item: item[1]))
    shipped.write_text(json.dumps(tokenizer))
    parity = measure(
        healthy.pte, Checkpoint.open(healthy.source), healthy.recipe, TOKENS, healthy.references / healthy.source.name,
        lambda stage, fraction: None, shipped, (data.passage(), PROMPTS),
    )  # fmt: skip
    found = missed(healthy.judged(parity, healthy.pte))
    assert found == {"tokenizer_fits"} if fault == "too many tokens" else "llm_runner_matches" in found


def test_a_file_cut_in_half(healthy: Healthy, tmp_path: Path) -> None:
    """Nothing is judged: the file is refused before it is run."""
    half = tmp_path / "half.pte"
    half.write_bytes(healthy.pte.read_bytes()[: healthy.pte.stat().st_size // 2])
    with pytest.raises(SourceError, match="cut short"):
        inspect(half)


def test_a_figure_that_is_not_finite_can_be_kept(healthy: Healthy, tmp_path: Path) -> None:
    """A cell that failed for it leaves its facts behind, to be read again."""
    pte = healthy.damaged(tmp_path / "wrong.pte", "model.layers.4.mlp.gate_proj.scales", one_nan)
    parity = compare_to_reference(
        Session(pte), Checkpoint.open(healthy.source), healthy.recipe, (data.passage(), PROMPTS), TOKENS,
        healthy.references / healthy.source.name, lambda stage, fraction: None,
    )  # fmt: skip
    path = tmp_path / "parity.json"
    path.write_text(json.dumps(parity.model_dump(mode="json")))
    assert not load(Parity, path).logits.finite


def test_drift_is_located_by_layer_and_weight(healthy: Healthy, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(healthy.source)
    tokens = list(range(200, 260))
    found = locate_drift(healthy.pte, checkpoint, healthy.recipe, tokens)
    assert (found.first, found.differing, found.found) == (None, (), found.weights)
    pte = healthy.damaged(tmp_path / "wrong.pte", "model.layers.2.mlp.up_proj.values", torch.zeros_like)
    found = locate_drift(pte, checkpoint, healthy.recipe, tokens)
    assert found.first == "layers.2"
    assert [(one.name, one.how) for one in found.differing] == [("model.layers.2.mlp.up_proj.values", "all zeros")]
    assert "layers.2 drifts first" in found.verdict


def test_drift_tells_a_wrong_decoder_from_wrong_weights(healthy: Healthy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window one too short in the exported decoder: the weights are right, and the first sliding layer drifts."""
    from hubpub.model import decoder

    built = decoder.CachedDecoder.__init__

    def shorter(self: Any, model: Any, shape: Any, *rest: Any) -> None:
        from dataclasses import replace

        built(self, model, replace(shape, sliding_window=shape.sliding_window - 1), *rest)

    monkeypatch.setattr(decoder.CachedDecoder, "__init__", shorter)
    found = locate_drift(healthy.pte, Checkpoint.open(healthy.source), healthy.recipe, list(range(200, 260)))
    assert found.first == "layers.0"
    assert not found.differing
    assert "masks" in found.verdict
