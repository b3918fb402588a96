"""The schema of facts.json: everything that was measured about a release, and nothing that was typed.

Units are in the names or said beside them: bytes, seconds, tokens, nats. Shapes are lists of dimensions; a dynamic
dimension is written as its range, e.g. "1..2047". A field that is new has a default, so that facts of an older release
can still be read; what changes the meaning of one raises `schema`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, SupportsFloat, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hubpub.errors import ConfigError
from hubpub.files import write_atomic

T = TypeVar("T", bound=BaseModel)

# Raised when what is measured, or how, changes: a cell measured the old way is measured again, and not exported again.
MEASURING = 8


class Fact(BaseModel):
    """A frozen value that is also JSON; field order is the order of definition, so that diffs stay small."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileFact(Fact):
    """A file by name, with its size and the SHA-256 of its content."""

    name: str
    bytes: int
    sha256: str


class SliceFact(Fact):
    """What was exported of the checkpoint, which has `layers`: the `widths` of the feed-forward of those that stay.

    `name` is that of a published slice, "" for another; in a rehearsal the rest is of what stands in for it.
    """

    name: str
    widths: tuple[int, ...]
    skip: tuple[int, ...]
    layers: int


class Source(Fact):
    """The checkpoint that was exported. `scale_model` is true in a rehearsal: then `repo` was not downloaded.

    `slice` says what was exported of it, None for the whole model. `qat_of` is the model that the checkpoint was made
    of by quantization-aware training, None where it was not.
    """

    repo: str
    revision: str
    license: str
    scale_model: bool
    architecture: str
    files: tuple[FileFact, ...]
    slice: SliceFact | None = None
    qat_of: str | None = None


class Parameters(Fact):
    """Weights the program uses, each counted once (a tied table is one; unused KV projections are none)."""

    total: int
    embedding: int
    per_layer_embedding: int
    other: int


class Layers(Fact):
    """Decoder layers by kind of attention, and how many of each read another layer's keys and values."""

    total: int
    sliding: int
    full: int
    sliding_sharing_kv: int
    full_sharing_kv: int


class Context(Fact):
    """Tokens: of the exported program, of one prefill call, of the sliding window (None: there is none), and of the
    source model."""

    exported: int
    max_prefill: int
    sliding_window: int | None
    source: int


class KVCache(Fact):
    """The mutable buffers for keys and values, at full context, with the scales of a quantized cache.

    `dtype` is that of most bytes ("" where there is no cache), `layers` the pairs of buffers for keys and values, and
    `shapes` how many buffers there are of each shape, e.g. {"1x2048x2x256": 40}.
    """

    bytes: int
    dtype: str
    layers: int
    shapes: dict[str, int] = {}


class Tensor(Fact):
    """An input or output: dtype as torch names it, one entry per dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Method(Fact):
    """One entry point of the program. `planned_bytes` is the arena it needs beside its constants.

    `state_bytes` are those of the arena's bytes that keep their value from call to call (mutable buffers: the KV cache
    and others); `delegates` is the number of calls into delegates among the `instructions`.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    planned_bytes: int
    instructions: int
    delegates: int = 0
    state_bytes: int = 0


class Operators(Fact):
    """How often each operator occurs: inside a delegate, and as a kernel an app must link."""

    delegated: dict[str, int]
    kernels: dict[str, int]

    @property
    def delegated_share(self) -> float:
        """The share of operators that run in a delegate, 0 to 1; 0 where a backend does not say what it runs."""
        inside, outside = sum(self.delegated.values()), sum(self.kernels.values())
        return inside / (inside + outside) if inside else 0.0

    @property
    def namespaces(self) -> dict[str, int]:
        """Occurrences of kernels by namespace, e.g. {"aten": 310, "llama": 120}: the libraries an app must link."""
        found: dict[str, int] = {}
        for name, count in self.kernels.items():
            namespace = name.partition("::")[0] if "::" in name else ""
            found[namespace] = found.get(namespace, 0) + count
        return found


class Program(Fact):
    """What the `.pte` itself says, read from the file.

    `constant_bytes` are the constants of the program's own kernels; `delegate_bytes` are the delegates' blobs and the
    weights only they use, `backend_bytes` the same by backend. `weights` are the bytes of all constants by dtype,
    inside and outside delegates, those in another file included: `external_bytes` says how many those are.
    `layout` is where the bytes of the file are; its values sum to the size of the file. `sliding_window` is how many
    tokens its mask lets a layer see; None where no mask is computed. `unpacked_constants` is how many constants of
    XNNPACK's delegates no matrix product packs; None where a release did not look. `sliding_layers` are those with a
    mask, and `scalars` is how often kernels compute with each single number and with each form of GELU ({"add 1e-06":
    109, "gelu tanh": 18}): None likewise.
    """

    methods: tuple[Method, ...]
    metadata: dict[str, int | float | bool | str | tuple[int, ...] | tuple[float, ...]]
    backends: dict[str, int] = Field(description="number of delegates by backend")
    operators: Operators
    constant_bytes: int
    delegate_bytes: int
    kv_cache: KVCache
    schema_version: int = 0
    backend_bytes: dict[str, int] = {}
    weights: dict[str, int] = {}
    external_bytes: int = 0
    layout: dict[str, int] = {}
    sliding_window: int | None = None
    unpacked_constants: int | None = None
    sliding_layers: tuple[int, ...] | None = None
    scalars: dict[str, int] | None = None

    @property
    def context(self) -> int | None:
        """The longest text in tokens, as the metadata says; None where it does not."""
        found = self.metadata.get("get_max_context_len", self.metadata.get("get_max_seq_len"))
        return found if isinstance(found, int) else None

    @property
    def eos_ids(self) -> tuple[int | float | str, ...] | None:
        """What the metadata says ends a text, as it says it; None where it says nothing."""
        found = self.metadata.get("get_eos_ids", self.metadata.get("get_eos_id"))
        return found if isinstance(found, tuple) or found is None else (found,)

    @property
    def forward(self) -> Method | None:
        return next((method for method in self.methods if method.name == "forward"), None)


class Logits(Fact):
    """Agreement of the program's logits with the reference model's (eager, float32), teacher-forced token by token.

    `tokens` are compared: all that were `read`, or of a longer text every second or third.

    `kl_mean` and `kl_p999` are nats; `error_max` is the largest absolute difference of a logit; `prefill_error_max`
    compares the program's own prefill with its own token-by-token decode, as `prefill_kl_mean` (nats, over the ends of
    `prefill_rows` pieces) and `prefill_top1` do; perplexities are of the passage. The `baseline` figures are of
    the reference model with what the recipe cannot avoid: int8 activations where it has them, else bfloat16.

    Two names are older than the terms used elsewhere, and stay because published facts have them: the `floor` figures
    are the bf16 baseline (the reference model in bfloat16 against itself in float32: what rounding alone changes), and
    `perplexity_original` is the reference model's.
    """

    tokens: int
    finite: bool
    top1_agreement: float
    kl_mean: float
    kl_p999: float
    error_max: float
    prefill_error_max: float
    perplexity: float
    perplexity_original: float
    floor_top1_agreement: float | None = None
    floor_kl_mean: float | None = None
    prefill_kl_mean: float | None = None
    prefill_top1: float | None = None
    prefill_rows: int = 0
    baseline_top1_agreement: float | None = None
    baseline_kl_mean: float | None = None
    read: int = 0

    @property
    def text(self) -> int:
        """How long the text is; facts of older releases say so in `tokens`."""
        return self.read or self.tokens


class Greedy(Fact):
    """Greedy continuations against the reference model: share of prompts that start and that go on the same way.

    `first_token_or_tie` also counts a first token that the reference model finds as likely as its own, within `tie`
    nats. `likely_tokens` is the share of all tokens that were made, `tokens` in number, of which it says the same after
    the text that the file itself had made so far.
    """

    prompts: int
    new_tokens: int
    first_token: float
    exact: float
    mean_common_prefix: float
    first_token_or_tie: float | None = None
    tie: float | None = None
    likely_tokens: float | None = None
    tokens: int = 0


class Whole(Fact):
    """How far a slice is from the model it is a slice of, both in float32 on the text of `Logits`: nats, and shares.

    Nothing of this is what a file does: it is what the slice itself gives up.
    """

    kl_mean: float
    top1_agreement: float
    perplexity: float
    perplexity_whole: float


class Lowering(Fact):
    """Agreement of the program's logits with the same quantized weights run eagerly, on the same tokens.

    What lowering, the cache and the kernels changed, without what quantization changed: nats, logits, and the
    perplexity of the eager model. `noise_kl_mean` is how far the eager model is from itself when its input changes in
    the last bits: no file can be expected to be closer.
    """

    kl_mean: float
    kl_p999: float
    top1_agreement: float
    error_max: float
    perplexity: float
    noise_kl_mean: float | None = None


class GridFact(Fact):
    """What of a model was trained for four bits and lies in the file as it was trained.

    `matrices` is how many were found on a grid of one scale for 32 weights, `groups` of how many such groups they
    are, and `exact` how many of these are stored exactly; the rest are rounded to nearest. `shifted` of them
    reach +8, one more than four bits hold, and take a product beside. `weights_share` is the share of the weights of
    linear layers in the matrices that were found, and `others` names up to 20 layers that were not. `explicit`: the
    checkpoint says which integers it holds; else they were found in its bfloat16 weights.
    """

    explicit: bool
    matrices: int
    groups: int
    exact: int
    shifted: int
    weights_share: float
    others: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of groups that are exact, 0 to 1."""
        return self.exact / self.groups


class StoredWeights(Fact):
    """The weights in the file against those that the recipe makes of the source, bit for bit.

    `weights` is how many there are, `found` how many were found in the file; the others are stored in another form.
    `products` is how many products of delegates were looked at, and `wrong` names up to 20 weights that differ, and
    layers that no product reads, or that one reads out of their order. `grid` is what was trained for four bits, None
    where nothing was, or the recipe has other bits.
    """

    weights: int
    found: int
    products: int
    wrong: tuple[str, ...] = ()
    grid: GridFact | None = None


class TokenizerCheck(Fact):
    """The shipped tokenizer against the model: the share of prompts it gives back unchanged, its largest id (which
    must be below the vocabulary), and whether it begins a text with the model's own first token by itself.

    `num_bos` is how many first tokens an app must ask the runner to put before a text, whose tokenizer adds none.
    `chat_template` says whether conversations put together from the texts on the card (system, several turns, thinking
    and tools where the template knows them) are what the chat template makes of them, token for token, and whether the
    tokens that close a turn and follow a call of a tool end a generation; None for a model without a template.
    """

    round_trips: float
    largest_id: int
    begins_with_bos: bool
    num_bos: int = 1
    chat_template: bool | None = None


class RunnerCheck(Fact):
    """The LLM runner with the shipped tokenizer against our own decode loop on one prompt.

    `prompt_tokens` is how many the runner made of the prompt, `prompt_tokens_original` how many the reference
    model's tokenizer makes of it.
    """

    prompt: str
    text: str
    tokens: int
    matches_decode_loop: bool
    prompt_tokens: int | None = None
    prompt_tokens_original: int | None = None


class Thinking(Fact):
    """What the chat template writes where the model is to think before it answers: `opening`, `reply` and `system` take
    the place of those in `Turns`.

    `thoughts` stand around what it thinks, which belongs to no later turn; None where the template does not write them.
    """

    opening: str
    reply: str
    system: tuple[str, str] | None = None
    thoughts: tuple[str, str] | None = None


class ToolTurns(Fact):
    """What the chat template makes of one function, `get_weather(city)`, which the model is told of and calls.

    `opening` takes the place of that in `Turns` and holds the declaration; the model answers with `call`, where a
    generation ends; `response` is what the app puts after it, and the model goes on.
    """

    opening: str
    call: str
    response: str


class Turns(Fact):
    """The texts that the chat template puts around messages; the model's own first token is none of them.

    `opening` stands before the first message of a user and `reply` after every one, so that the model answers; `again`
    stands between an answer and the next message of the user, and begins with `end`, which closes a turn. With a
    message of the system, `system` stands around that in place of `opening`; None where the template has no such role.
    `answered` stands in place of `reply` where the answer is there already ("": the same). `thinking` and `tools` are
    None where the template knows neither.
    """

    opening: str
    reply: str
    again: str
    end: str
    system: tuple[str, str] | None = None
    answered: str = ""
    thinking: Thinking | None = None
    tools: ToolTurns | None = None

    def conversation(self, messages: Sequence[tuple[str, str]], *, think: bool = False) -> str:
        """Messages (role, content), of the system at first or not at all and then of user and assistant in turns, as
        the model reads them before it answers; before it thinks, where `think` is set."""
        how = self.thinking if think else self
        if how is None:
            raise ValueError("the chat template knows no thinking")
        text, (role, content) = how.opening, messages[0]
        if role == "system":
            if how.system is None:
                raise ValueError("the chat template has no message of the system")
            text, messages = how.system[0] + content + how.system[1], messages[1:]
        for number, (role, content) in enumerate(messages):
            last = number == len(messages) - 1
            text += content + (self.again if role != "user" else how.reply if last else self.answered or self.reply)
        return text


class PromptFormat(Fact):
    """What stands around a text: `bos` is the token the model wants every text to begin with ("" for none).

    The runner puts it there (`num_bos` = 1) where the shipped tokenizer does so by itself (`adds_bos`). With any other
    tokenizer.json ExecuTorch 1.4.1 ignores `num_bos`, and whoever asks writes the token (`written_bos`).
    """

    bos: str
    turns: Turns | None = None
    adds_bos: bool = True

    @property
    def num_bos(self) -> int:
        """How many first tokens the runner is asked to put before a text."""
        return 1 if self.bos and self.adds_bos else 0

    @property
    def written_bos(self) -> str:
        """What a text is to begin with that is given to the runner, "" for nothing."""
        return "" if self.adds_bos else self.bos


class Sampling(Fact):
    """How the makers of a model draw its next token, as their generation_config.json says; None where it does not."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


class Sample(Fact):
    """What the file said to `prompt`, greedily, without what is put around messages; `ended`: by itself."""

    prompt: str
    text: str
    ended: bool


class Parity(Fact):
    """The program compared with the reference model: the source checkpoint, run eagerly in float32.

    `runner` is None for a layout that the LLM runner does not run, `stop_tokens` are the ids that end a generation of
    the reference model and `sliding_window` is its window (None: it has none); `sliding_layers` and `scalars` are those
    that a program of it must have (see Program; None in older facts). `measuring` says in which way this was measured,
    and `sha256` on which file ("" in facts of older releases). `samples` are answers of the file to questions, or of a
    model that answers none, texts it went on with.
    """

    logits: Logits
    greedy: Greedy
    runner: RunnerCheck | None
    lowering: Lowering | None = None
    weights: StoredWeights | None = None
    whole: Whole | None = None
    tokenizer: TokenizerCheck | None = None
    stop_tokens: tuple[int, ...] | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] | None = None
    scalars: dict[str, int] | None = None
    samples: tuple[Sample, ...] = ()
    measuring: int = 1
    sha256: str = ""


class Resident(Fact):
    """Bytes of a process that are in memory: `anonymous`, which the system cannot take back and an app is killed for,
    and `mapped` from files, which it can read again."""

    anonymous: int
    mapped: int


class Memory(Fact):
    """What a file took of memory: after loading, after the prompt, and after `generated_tokens` new tokens.

    On this machine: beyond what the process held before; of a device: all of the process. `beside` is the part of the
    tokenizer and the runner, taken before the file is loaded; None where that was not told apart.
    """

    loaded: Resident
    prefilled: Resident
    generated: Resident
    generated_tokens: int
    beside: Resident | None = None


class Speed(Fact):
    """Speed in a fresh process on `host`: medians over `runs`, with the slowest and fastest run as the range.

    `load_seconds` is from nothing to the first answer of two tokens, `first_token_seconds` from a prompt of
    `prefill_tokens` to its first new token. `peak_resident_bytes` is what loading and running the program added to the
    process at its peak. `through` says what ran it. Where `representative` is false, `reason` says why. `measuring` and
    `sha256` are as in `Parity`. `memory` tells what was taken apart by kind.
    """

    host: str
    threads: int
    load_seconds: float
    prefill_tokens: int
    prefill_tokens_per_second: float
    decode_tokens: int
    decode_tokens_per_second: float
    peak_resident_bytes: int
    first_token_seconds: float | None = None
    memory: Memory | None = None
    runs: int = 1
    prefill_range: tuple[float, float] | None = None
    decode_range: tuple[float, float] | None = None
    through: Literal["LLM runner", "decode loop", "window"] = "decode loop"
    system: str = ""
    runtime: str = ""
    representative: bool = True
    reason: str = ""
    measuring: int = 1
    sha256: str = ""


class DeviceSpeed(Fact):
    """Speed of this very file on another device, from the statistics the C++ LLM runner printed there.

    `stats` is the file they came from: its SHA-256 says which. `runs` is how many it holds; figures are medians.
    `celsius` is how warm its processor was before and after all runs; None where it does not say.
    """

    device: str
    stats: FileFact
    runs: int
    load_seconds: float
    first_token_seconds: float
    prefill_tokens: int
    prefill_tokens_per_second: float
    decode_tokens: int
    decode_tokens_per_second: float
    threads: int | None = None
    memory: Memory | None = None
    celsius: tuple[float, float] | None = None


class Score(Fact):
    """One figure of a task, as its metric gives it; `interval` holds the true value 95 times of 100."""

    metric: str
    value: float
    stderr: float | None = None
    interval: tuple[float, float] | None = None
    higher_is_better: bool = True


class Evaluation(Fact):
    """A benchmark that this very file was put through. `dataset` is where its items are on the Hub ("": elsewhere).

    `shots` are the examples before each item, `chat`: as messages of the chat template. `items` of `items_of_task` were
    asked; of `truncated` requests the beginning did not fit the context.
    """

    task: str
    version: str
    dataset: str
    subset: str
    split: str
    shots: int
    chat: bool
    items: int
    items_of_task: int
    truncated: int
    scores: tuple[Score, ...]
    harness: str
    runtime: str
    sha256: str

    @property
    def whole(self) -> bool:
        """Whether every item of the task was asked, and read from its beginning."""
        return self.items == self.items_of_task and not self.truncated


class Rebuilt(Fact):
    """This very file, byte for byte, exported again from its source: on which day (ISO), under which Python, where."""

    date: str
    python: str
    system: str


class Gate(Fact):
    """A limit and what was measured: `kind` says on which side of `limit` the measured value must lie."""

    name: str
    kind: Literal["max", "min"]
    limit: float
    measured: float
    passed: bool


class Patch(Fact):
    """A patch to an upstream package: `applied` is false where upstream no longer has the defect."""

    name: str
    defect: str
    url: str
    applied: bool


class Stages(Fact):
    """Seconds spent in each stage of making the file, and the peak resident bytes while doing so."""

    load: float
    quantize: float
    export: float
    lower: float
    write: float
    peak_resident_bytes: int


class Exported(Fact):
    """What only the export knows: counts on the model, patches, seconds. Kept as export.json beside the file."""

    file: FileFact
    parameters: Parameters
    layers: Layers
    context: Context
    vocabulary: int
    patches: tuple[Patch, ...]
    toolchain: dict[str, str]
    stages: Stages


class Workflow(Fact):
    """The run of a workflow that made a file: "owner/name", the commit that was checked out, and the run's page.

    `attested` is false where that run could sign nothing (a private repository without the plan for it).
    """

    repository: str
    commit: str
    run: str
    attested: bool = True


class OtherHost(Fact):
    """The file on another kind of machine, e.g. "Linux aarch64": held against the same original by the same gates.

    What it answers there need not be what it answers elsewhere: kernels round in other places.
    """

    system: str
    parity: Parity
    speed: Speed
    gates: tuple[Gate, ...]


class CellFacts(Fact):
    """Everything measured about one cell.

    `fingerprint` names everything the file depends on: source revision and files, recipe, context, the versions of
    torch, executorch, torchao and transformers, and the code that loads, quantizes and lowers (see hubpub.plan).
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    cell: str
    variant: str
    recipe: str
    summary: str
    tuned: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Kinds of layers that were given int8 weights for this model, and in which layers."""
    fingerprint: str
    file: FileFact
    tokenizer: tuple[FileFact, ...]
    source: Source
    parameters: Parameters
    layers: Layers
    context: Context
    vocabulary: int
    program: Program
    parity: Parity
    speed: Speed
    gates: tuple[Gate, ...]
    patches: tuple[Patch, ...]
    toolchain: dict[str, str]
    stages: Stages
    workflow: Workflow | None = None
    devices: tuple[DeviceSpeed, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    hosts: tuple[OtherHost, ...] = ()
    rebuilt: tuple[Rebuilt, ...] = ()
    prompt: PromptFormat | None = None
    sampling: Sampling | None = None

    @model_validator(mode="after")
    def _of_one_file(self) -> CellFacts:
        for what, measured in self._measurements:
            if measured.sha256 not in ("", self.file.sha256):
                raise ValueError(f"{what} was measured on another file than {self.file.name}")
        return self

    @property
    def _measurements(self) -> list[tuple[str, Parity | Speed]]:
        found: list[tuple[str, Parity | Speed]] = [("parity", self.parity), ("speed", self.speed)]
        for one in self.hosts:
            found += [("parity", one.parity), ("speed", one.speed)]
        return found

    @property
    def passed(self) -> bool:
        gates = (*self.gates, *(gate for one in self.hosts for gate in one.gates))
        return all(gate.passed for gate in gates)

    @property
    def measured_as_now(self) -> bool:
        """Whether everything was measured in the way it is measured now, on the file these facts are of."""
        return all(one.measuring == MEASURING and one.sha256 == self.file.sha256 for _, one in self._measurements)


class Accepted(Fact):
    """Something that got worse since the release before by more than its tolerance, and why it was released anyway."""

    cell: str
    what: str
    old: float
    new: float
    reason: str


class CardFacts(Fact):
    """facts.json of a Hub repo: one release of one card. `previous` is the version it followed on the Hub."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    repo: str
    version: str
    previous: str | None = None
    variant: str
    cells: tuple[CellFacts, ...]
    accepted: tuple[Accepted, ...] = ()

    @property
    def scale_model(self) -> bool:
        return any(cell.source.scale_model for cell in self.cells)


def rounded(value: SupportsFloat) -> float:
    """Six significant digits: what a comparison of two releases can rely on. What is not finite stays as it is."""
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else number


def dump(fact: BaseModel) -> str:
    """`fact` as indented JSON with a final newline; the same fact always gives the same text."""
    return json.dumps(fact.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"


def save(fact: BaseModel, path: Path) -> None:
    """Write `fact` to `path` so that a reader sees the old file or the new one, never a part."""
    write_atomic(path, dump(fact).encode())


def load(model: type[T], path: Path) -> T:
    """Read a fact written by `save`. Raises ConfigError naming the file when it is damaged or of another schema."""
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "give the path of a facts.json") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(
            f"{path}: {where}: {first['msg']}",
            "give a facts.json that hubpub wrote; one in its own work folder is measured again when it is deleted",
        ) from None
