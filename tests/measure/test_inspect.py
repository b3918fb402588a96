"""Programs exported on the spot, read by `inspect` and compared with executorch's own readers."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from hubpub import facts
from hubpub.cli import tables
from hubpub.errors import SourceError
from hubpub.measure import xnnpack
from hubpub.measure.flatbuffer import Buffer, Malformed
from hubpub.measure.inspect import inspect
from hubpub.measure.pte import SCALARS, opened

CONTEXT, LAYERS, HEADS, DIM, VOCABULARY = 16, 2, 2, 16, 50
METADATA = {
    "get_max_seq_len": CONTEXT - 1,
    "get_bos_id": 2,
    "get_eos_ids": [1, 106],
    "get_one_id": [7],
    "use_kv_cache": True,
    "scale": 0.5,
    "tokenizer": "toy",
    "tensor": torch.tensor([3, 4]),
    "real_tensor": torch.tensor([0.5, 4.0]),
}


class Decoder(torch.nn.Module):
    """A toy decoder whose caches are written by `llama::update_cache`."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(VOCABULARY, HEADS * DIM)
        self.project = torch.nn.Linear(HEADS * DIM, HEADS * DIM)
        for layer in range(LAYERS):
            for kind in "kv":
                self.register_buffer(f"{kind}_cache_{layer}", torch.zeros(1, CONTEXT, HEADS, DIM))

    def forward(self, tokens: Any, input_pos: Any) -> dict[str, Any]:
        start = input_pos[0].item()
        torch._check(start >= 0)
        torch._check(start < CONTEXT - 1)
        x = self.table(tokens)
        for layer in range(LAYERS):
            q = self.project(x).view(1, -1, HEADS, DIM)
            k, v = getattr(self, f"k_cache_{layer}"), getattr(self, f"v_cache_{layer}")
            torch.ops.llama.update_cache(q, k, start)
            torch.ops.llama.update_cache(q, v, start)
            attended = torch.ops.llama.custom_sdpa(q, k, v, start, None, 0.0, True, None)
            x = x + attended.reshape(1, -1, HEADS * DIM)
        return {"logits": self.project(x)[:, -1], "hidden": x}


class Running(torch.nn.Module):
    """Two caches written with plain operators, a counter beside them, and two entry points that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 4))
        self.register_buffer("keys", torch.zeros(1, 2, 8, 4))
        self.register_buffer("values", torch.zeros(1, 2, 8, 4))
        self.register_buffer("count", torch.zeros(3, dtype=torch.int64))

    def forward(self, x: Any) -> Any:
        self.keys.add_(x)
        self.values.mul_(x)
        self.count.add_(1)
        return (self.keys @ self.weight) + self.values


class Branch(torch.nn.Module):
    """One weight behind another method, with a branch in it."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, flag: Any, x: Any) -> Any:
        return torch.cond(flag, lambda a: a @ self.weight, lambda a: a - self.weight, [x])


def write(folder: Path, name: str, manager: Any, **config: Any) -> Path:
    from executorch.exir import ExecutorchBackendConfig

    program = manager.to_executorch(ExecutorchBackendConfig(**config))
    path = folder / f"{name}.pte"
    with path.open("wb") as file:
        program.write_to_file(file)
    return path


def exported_decoder(module: Any) -> Any:
    length = torch.export.Dim("length", min=1, max=CONTEXT - 1)
    example = (torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    shapes = {"tokens": {1: length}, "input_pos": None}
    return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each form by name, each made once."""
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    def lower(program: Any, delegate: bool, **more: Any) -> Any:
        config = EdgeCompileConfig(_check_ir_validity=False)
        parts = [XnnpackPartitioner()] if delegate else None
        return to_edge_transform_and_lower(program, partitioner=parts, compile_config=config, **more)

    folder = tmp_path_factory.mktemp("programs")
    torch.manual_seed(0)
    made: dict[str, Path] = {}
    decoder = Decoder().eval().requires_grad_(False)
    made["portable"] = write(folder, "portable", lower(exported_decoder(decoder), False, constant_methods=METADATA))

    quantize_(
        decoder,
        Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32)),
    )
    quantize_(
        decoder,
        IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)),
        lambda module, _: isinstance(module, torch.nn.Embedding),
    )
    quantized = lower(exported_decoder(decoder), True, constant_methods=METADATA)
    made["quantized"] = write(folder, "quantized", quantized, do_quant_fusion_and_const_prop=True)

    running = Running().eval().requires_grad_(False)
    plain = torch.export.export(running, (torch.ones(1, 2, 8, 4),))
    branch = torch.export.export(Branch(running.weight).eval(), (torch.tensor(True), torch.ones(4, 4)))
    both = {"forward": plain, "branch": branch}
    made["methods"] = write(folder, "methods", lower(both, False), emit_mutable_buffer_names=True)
    made["inline"] = write(folder, "inline", lower(plain, True), extract_delegate_segments=False)
    made["external"] = write(folder, "external", lower(plain, False), external_constants=True)
    made["old"] = folder / "old.pte"
    made["old"].write_bytes(without_segments(made["methods"]))
    other = made["inline"].read_bytes().replace(b"XnnpackBackend", b"UnheardBackend")
    made["unknown backend"] = folder / "unknown.pte"
    made["unknown backend"].write_bytes(other)
    return made


def without_segments(path: Path) -> bytes:
    """The program as releases before segments wrote it: constants inside the flatbuffer and no extended header."""
    from executorch.exir._serialize._flatbuffer_program import _program_to_flatbuffer

    return bytes(_program_to_flatbuffer(reference(path)).data)


def reference(path: Path) -> Any:
    """The program as executorch's own deserializer reads it, with the constants put back."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    return deserialize_pte_binary(path.read_bytes()).program


FORMS = ("portable", "quantized", "methods", "inline", "external", "unknown backend")


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_the_reference_deserializer(programs: dict[str, Path], form: str) -> None:
    found = inspect(programs[form])
    program = reference(programs[form])
    methods = {plan.name: plan for plan in program.execution_plan if plan.inputs}
    assert [method.name for method in found.methods] == list(methods)
    assert {plan.name for plan in program.execution_plan} - methods.keys() == found.metadata.keys()
    assert found.schema_version == program.version
    kernels: Counter[str] = Counter()
    backends: Counter[str] = Counter()
    constants: dict[int, int] = {}
    for plan in program.execution_plan:
        names = [f"{op.name}.{op.overload}".rstrip(".") for op in plan.operators]
        backends.update(delegate.id for delegate in plan.delegates)
        for chain in plan.chains:
            for instruction in chain.instructions:
                if type(instruction.instr_args).__name__ == "KernelCall":
                    kernels[names[instruction.instr_args.op_index]] += 1
        for value in plan.values:
            if type(value.val).__name__ == "Tensor" and value.val.data_buffer_idx and not value.val.allocation_info:
                constants[value.val.data_buffer_idx] = prod(value.val.sizes) * itemsize(value.val.scalar_type)
    assert found.operators.kernels == kernels
    assert found.backends == backends
    for method in found.methods:
        plan = methods[method.name]
        assert method.planned_bytes == sum(plan.non_const_buffer_sizes[1:])
        assert method.instructions == sum(len(chain.instructions) for chain in plan.chains)
        for tensors, indices in ((method.inputs, plan.inputs), (method.outputs, plan.outputs)):
            assert len(tensors) == len(indices)
            for tensor, index in zip(tensors, indices, strict=True):
                value = plan.values[index].val
                assert tensor.dtype == SCALARS[value.scalar_type][0]
                assert [upper(size) for size in tensor.shape] == value.sizes
    own = sum(found.weights.values()) - sum(delegate_weights(programs[form]).values()) - found.external_bytes
    assert own == sum(constants.values())
    assert sum(found.layout.values()) == programs[form].stat().st_size


def itemsize(scalar_type: int) -> int:
    return SCALARS[scalar_type][1] // 8


def upper(size: int | str) -> int:
    return size if isinstance(size, int) else int(size.removeprefix("1.."))


def delegate_weights(path: Path) -> Counter[str]:
    with opened(path) as (file, plans):
        blobs = {
            file.blob(*delegate[1:]) for plan in plans for delegate in plan.delegates if delegate[0] == "XnnpackBackend"
        }
        graphs = [xnnpack.read(file.data, *blob) for blob in blobs]
        unique = {(w.key or (i, n)): w for i, g in enumerate(graphs) if g for n, w in enumerate(g.weights)}
        total: Counter[str] = Counter()
        for weight in unique.values():
            total[weight.dtype] += weight.bytes
        return total


@pytest.mark.parametrize("form", ["portable", "quantized", "methods", "inline"])
def test_agrees_with_the_runtime(programs: dict[str, Path], form: str) -> None:
    from executorch.runtime import Runtime

    found = inspect(programs[form])
    program = Runtime.get().load_program(programs[form])
    assert {method.name for method in found.methods} | found.metadata.keys() == program.method_names
    for method in found.methods:
        meta = program.metadata(method.name)
        assert len(method.inputs) == meta.num_inputs()
        assert len(method.outputs) == meta.num_outputs()
        for index, tensor in enumerate(method.inputs):
            other = meta.input_tensor_meta(index)
            assert [upper(size) for size in tensor.shape] == list(other.sizes())
            assert {v[0]: k for k, v in SCALARS.items()}[tensor.dtype] == int(other.dtype())
    for name, value in found.metadata.items():
        answer = program.load_method(name)
        assert answer is not None
        plain = [item.tolist() if hasattr(item, "tolist") else item for item in answer.execute([])]
        plain = plain[0] if len(plain) == 1 and isinstance(plain[0], list) else plain
        assert plain == (list(value) if isinstance(value, tuple) else [value])


@pytest.mark.parametrize("form", ["quantized", "inline"])
def test_delegated_operators_agree_with_flatc(programs: dict[str, Path], form: str) -> None:
    from executorch.backends.xnnpack import serialization
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    nodes: Counter[str] = Counter()
    schema = Path(serialization.__path__[0]) / "schema.fbs"
    program = reference(programs[form])
    for delegate in (delegate for plan in program.execution_plan for delegate in plan.delegates):
        blob = program.backend_delegate_data[delegate.processed.index].data
        offset, size = struct.unpack_from("<II", blob, 10)
        with tempfile.TemporaryDirectory() as folder:
            binary = Path(folder) / "graph.bin"
            binary.write_bytes(blob[offset : offset + size])
            _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
            graph = json.loads((Path(folder) / "graph.json").read_text())
        nodes.update(node["xnode_union_type"] for node in graph["xnodes"])
    assert nodes
    assert inspect(programs[form]).operators.delegated == nodes


def test_node_names_are_those_of_the_schema() -> None:
    from executorch.backends.xnnpack import serialization

    schema = (Path(serialization.__path__[0]) / "schema.fbs").read_text()
    union = schema.partition("union XNodeUnion {")[2].partition("}")[0]
    assert tuple(line.partition(":")[0].strip(" ,") for line in union.strip().splitlines()) == xnnpack.NODES


def test_metadata_and_cache(programs: dict[str, Path]) -> None:
    for form in ("portable", "quantized"):
        found = inspect(programs[form])
        assert found.metadata == {
            **{name: value for name, value in METADATA.items() if not name.endswith("tensor")},
            "get_eos_ids": (1, 106),
            "get_one_id": (7,),
            "tensor": (3, 4),
            "real_tensor": (0.5, 4.0),
        }
        assert found.metadata["use_kv_cache"] is True
        size = 2 * LAYERS * CONTEXT * HEADS * DIM * 4
        shape = f"1x{CONTEXT}x{HEADS}x{DIM}"
        assert found.kv_cache == facts.KVCache(bytes=size, dtype="float32", layers=LAYERS, shapes={shape: 2 * LAYERS})
        (forward,) = found.methods
        assert forward.state_bytes == size
        assert [tensor.shape for tensor in forward.inputs] == [(1, f"1..{CONTEXT - 1}"), (1,)]
        # `hidden` is dynamic in its second dimension alone, though its third has a bound too.
        assert {tensor.name: tensor.shape for tensor in forward.outputs} == {
            "logits": (1, HEADS * DIM),
            "hidden": (1, f"1..{CONTEXT - 1}", HEADS * DIM),
        }


def test_quantized_weights_are_told_apart(programs: dict[str, Path]) -> None:
    found = inspect(programs["quantized"])
    width = HEADS * DIM
    assert found.weights["int4"] == width * width // 2
    assert found.weights["int8"] == VOCABULARY * width
    assert found.weights["scales"] == width * 2
    assert "quantized_decomposed::embedding_byte.out" in found.operators.kernels
    assert found.operators.namespaces["llama"] == 3 * LAYERS
    assert found.delegate_bytes == found.backend_bytes["XnnpackBackend"] > width * width // 2
    assert 0 < found.operators.delegated_share < 1


def test_state_without_cache_kernels(programs: dict[str, Path]) -> None:
    for form in ("methods", "old", "inline", "external", "unknown backend"):
        found = inspect(programs[form])
        forward = next(method for method in found.methods if method.name == "forward")
        assert forward.state_bytes == 2 * 64 * 4 + 3 * 8, form
        assert (found.kv_cache.bytes, found.kv_cache.layers) == (2 * 64 * 4, 1), form


def test_other_places_of_constants(programs: dict[str, Path]) -> None:
    weight, one = 4 * 4 * 4, 8  # the weight both methods use, and the number the counter is raised by
    assert inspect(programs["methods"]).constant_bytes == weight + one
    old = inspect(programs["old"])
    assert old.layout["constants"] == old.constant_bytes == weight + one
    assert old.methods == inspect(programs["methods"]).methods
    external = inspect(programs["external"])
    assert external.external_bytes == weight
    assert external.constant_bytes <= one
    unknown = inspect(programs["unknown backend"])
    assert unknown.backends == {"UnheardBackend": 1}
    assert unknown.operators.delegated == {}
    assert unknown.delegate_bytes == inspect(programs["inline"]).delegate_bytes


def test_facts_survive_json(programs: dict[str, Path], tmp_path: Path) -> None:
    for form, path in programs.items():
        found = inspect(path)
        facts.save(found, tmp_path / "program.json")
        assert facts.load(facts.Program, tmp_path / "program.json") == found, form


def test_terminal_output(programs: dict[str, Path]) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tables.program(inspect(programs["quantized"]), "toy [bold]/8da4w"))
    text = console.export_text()
    for expected in (
        "toy [bold]/8da4w",
        "llama::update_cache.out",
        "XNNFullyConnected",
        "[1, 106]",
        "[1, 1..15]",
        "int4",
    ):
        assert expected in text


def test_terminal_output_has_no_control_characters(programs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "hostile.pte"
    path.write_bytes(programs["portable"].read_bytes().replace(b"get_bos_id", b"get\x1b[2J_id"))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tables.program(inspect(path)))
    assert "\x1b" not in console.export_text()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"hello", "is not a .pte"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"GGUF" + bytes(60), "GGUF"),
        (struct.pack("<Q", 20) + b'{"a":{"dtype":"F32"}}' + bytes(20), "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (bytes(4) + b"BP08" + bytes(60), "bundled program"),
        (bytes(4) + b"FT01" + bytes(60), "data file"),
        (bytes(4) + b"ET13" + bytes(60), "ET13"),
        (bytes(4) + b"ET12", "damaged"),
        (bytes(4) + b"ET12" + b"eh00", "cut short"),
        (bytes(4) + b"ET12" + bytes(60), "damaged"),
    ],
)
def test_what_is_not_a_program(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "file.pte"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=says) as caught:
        inspect(path)
    assert caught.value.hint


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        inspect(tmp_path / "nothing.pte")
    with pytest.raises(SourceError, match="not a file"):
        inspect(tmp_path)


def test_cut_short_at_any_length(programs: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.pte"
    for form in ("portable", "quantized", "old", "inline"):
        whole = programs[form].read_bytes()
        for length in range(1, len(whole) - 256, 997):
            cut.write_bytes(whole[:length])
            with pytest.raises(SourceError):
                inspect(cut)
        cut.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SourceError, match=r"cut short|damaged"):
            inspect(cut)


def mutations(whole: bytes, count: int, chance: random.Random) -> Iterator[bytes]:
    """Copies of `whole` with something wrong: bits, whole numbers, lengths, ranges moved or cleared."""
    extremes = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, len(whole), 0x10000)

    def bits(data: bytearray, at: int) -> None:
        data[at] ^= 1 << chance.randrange(8)

    def number(data: bytearray, at: int) -> None:
        at -= at % 4
        data[at : at + 4] = struct.pack("<I", chance.choice(extremes))

    def nearby(data: bytearray, at: int) -> None:
        at -= at % 4
        value = int.from_bytes(data[at : at + 4], "little") + chance.choice((-8, -4, -1, 1, 4, 8, 64))
        data[at : at + 4] = struct.pack("<I", value % 2**32)

    def moved(data: bytearray, at: int) -> None:
        source = chance.randrange(len(data))
        part = data[source : source + chance.randrange(1, 64)]
        data[at : at + len(part)] = part

    kinds: tuple[Callable[[bytearray, int], None], ...] = (bits, number, nearby, moved)
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 8)):
            chance.choice(kinds)(data, chance.randrange(len(whole)))
        data[4:8] = b"ET12"
        yield bytes(data)


def test_damage_is_an_error_or_a_program(programs: dict[str, Path], tmp_path: Path) -> None:
    chance = random.Random(7)
    path = tmp_path / "damaged.pte"
    refused = 0
    for form in ("quantized", "methods", "old", "inline"):
        for data in mutations(programs[form].read_bytes(), 125, chance):
            path.write_bytes(data)
            began = time.monotonic()
            try:
                found = inspect(path)
                facts.dump(found)
                Console(width=100, file=io.StringIO()).print(tables.program(found))
            except SourceError as error:
                assert error.hint
                refused += 1
            assert time.monotonic() - began < 5
    assert refused > 100


def test_tables_that_overlap_are_refused() -> None:
    # A vector of many offsets that all lead to one table, which holds a vector of many numbers.
    count = 2000
    head = struct.pack("<I4s", 16, b"TEST") + struct.pack("<HHHH", 6, 8, 4, 0)
    root = struct.pack("<iI", 8, 4) + struct.pack("<I", count)
    offsets = b"".join(struct.pack("<I", 4 * (count - index)) for index in range(count))
    inner = struct.pack("<iI", 28 + 4 * count - 8, 4) + struct.pack("<I", count) + bytes(4 * count)
    data = head + root + offsets + inner
    with pytest.raises(Malformed, match="overlap"):
        for table in Buffer(data, 0, len(data)).root().tables(0):
            table.numbers(0, "i")


def test_reading_needs_no_torch(programs: dict[str, Path]) -> None:
    script = (
        "import sys; from pathlib import Path; from hubpub.measure.inspect import inspect; "
        "assert inspect(Path(sys.argv[1])).methods; assert not {'torch', 'executorch', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script, str(programs["quantized"])], check=True)
