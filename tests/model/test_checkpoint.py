"""A damaged, foreign or hostile checkpoint is refused before anything heavy starts, in bounded time and memory."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from conftest import bounded, scale_model

import hubpub
from hubpub.errors import SourceError
from hubpub.model.checkpoint import Checkpoint, digest
from hubpub.model.families import FAMILIES, family


@pytest.fixture(scope="module")
def good(scale_cache: Path) -> Path:
    """A scale model of Gemma 3n E2B."""
    return scale_model("gemma-3n-E2B-it", scale_cache)


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(good, tmp_path / "copy"))


def test_a_good_checkpoint_knows_its_text_tensors(good: Path) -> None:
    checkpoint = Checkpoint.open(good)
    assert checkpoint.family.name == "gemma3n"
    assert "embed_tokens.weight" in checkpoint.text_tensors
    assert len(checkpoint.text_tensors) < len(checkpoint.tensors)
    assert digest(good / checkpoint.shards[0]) in checkpoint.files()


def test_a_truncated_shard_is_named(copy: Path) -> None:
    shard = copy / Checkpoint.open(copy).shards[0]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(SourceError, match=rf"{shard.name} is truncated"):
        Checkpoint.open(copy)


def test_a_missing_shard_is_named(copy: Path) -> None:
    shard = copy / Checkpoint.open(copy).shards[-1]
    shard.unlink()
    with pytest.raises(SourceError, match=rf"{shard.name} is missing"):
        Checkpoint.open(copy)


def test_a_missing_tensor_is_named(copy: Path) -> None:
    _edit(copy, lambda header: header.pop("model.language_model.norm.weight", None))
    with pytest.raises(SourceError, match=r"tensor model\.language_model\.norm\.weight is missing"):
        hubpub.load_text_decoder(copy)


def test_a_wrong_shape_is_named(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["laurel_rank"] *= 2
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"linear_left\.weight is \[\d+, \d+\] where config\.json asks for"):
        hubpub.load_text_decoder(copy)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"architectures": ["MistralForCausalLM"]}', r"MistralForCausalLM.*not one hubpub can export"),
        ("[]", "holds no JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_a_foreign_architecture_is_refused(copy: Path, config: str, says: str) -> None:
    (copy / "config.json").write_text(config)
    with pytest.raises(SourceError, match=says):
        Checkpoint.open(copy)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    architecture = family(FAMILIES[0]).architecture
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(SourceError, match="no safetensors") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.hint is not None
    assert "pytorch_model.bin is a pickle" in caught.value.hint


def test_an_index_cannot_point_outside_its_folder(copy: Path) -> None:
    index = copy / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"] = dict.fromkeys(table["weight_map"], "../elsewhere.safetensors")
    index.write_text(json.dumps(table))
    with pytest.raises(SourceError, match="not a safetensors file in the same folder"):
        Checkpoint.open(copy)


def _edit(folder: Path, change: object) -> None:
    """Apply `change` to the header of every shard, leaving the data where it is."""
    import struct

    assert callable(change)
    for shard in folder.glob("*.safetensors"):
        raw = shard.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        shard.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


CONFIG = {"architectures": ["Gemma3nForConditionalGeneration"]}


READ_ALL = """
import resource, sys
from pathlib import Path
from hubpub.errors import SourceError
from hubpub.model.checkpoint import Checkpoint
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in sys.argv[2:]:
    try:
        checkpoint = Checkpoint.open(Path(name))
        checkpoint.stop_tokens()
        print("read")
    except SourceError as error:
        print("refused")
"""


def checkpoint(folder: Path, header: Any, data: bytes = bytes(8), config: Any = CONFIG) -> Path:
    """A checkpoint of one shard; `header` and `config` are values, or bytes to be written as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return folder


def tensor(shape: Any = (4,), offsets: Any = (0, 8), dtype: Any = "BF16") -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def read(*folders: Path, memory: int = 1 << 30) -> list[str]:
    return bounded(READ_ALL, *folders, memory=memory)


def test_a_plain_one_is_read(tmp_path: Path) -> None:
    found = Checkpoint.open(checkpoint(tmp_path, {**tensor(), "__metadata__": {"format": "pt"}}))
    assert found.tensors["x"].shape == (4,) and found.tensors["x"].shard == "model.safetensors"
    scalar = Checkpoint.open(checkpoint(tmp_path, tensor((), (0, 2))))
    assert scalar.tensors["x"].shape == ()


DEEP = b"[" * 200_000


@pytest.mark.parametrize("where", ["header", "config.json", "model.safetensors.index.json", "generation_config.json"])
@pytest.mark.parametrize("deep", [DEEP, b'{"x":' * 100_000])
def test_what_is_nested_too_deep_is_refused(where: str, deep: bytes, tmp_path: Path) -> None:
    checkpoint(tmp_path, deep if where == "header" else tensor())
    if where != "header":
        (tmp_path / where).write_bytes(deep)
    with pytest.raises(SourceError, match="nested too deep"):
        Checkpoint.open(tmp_path).stop_tokens()


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ([], "not a safetensors file"),
        ("x", "not a safetensors file"),
        ({"x": 1}, "not a safetensors file"),
        ({"x": {}}, "not a safetensors file"),
        (tensor(dtype="F8_UNKNOWN"), "unknown dtype"),
        (tensor(dtype=["BF16"]), "not a safetensors file"),
        (tensor(shape=(-2, -2)), "a number is none"),
        (tensor(shape=(4.0,)), "a number is none"),
        (tensor(shape=(True, 4)), "a number is none"),
        (tensor(shape="4"), "a number is none"),
        (tensor(shape=7), "not a safetensors file"),
        (tensor(shape=(10**30,)), "a number is none"),
        (tensor(shape=(1,) * 16 + (4,)), "17 dimensions"),
        (tensor(shape=(5,)), "8 bytes where its shape needs 10"),
        (tensor(offsets=(-8, 0)), "a number is none"),
        (tensor(offsets=(8, 0)), "-8 bytes where its shape needs 8"),
        (tensor(offsets=(0, 8, 16)), "not a safetensors file"),
        (tensor(offsets=(8, 16)), "is truncated: .* bytes where its header promises"),
        (b"\xff\xfe", "not a safetensors file"),
        (b'{"x":' + b"9" * 5000 + b"}", "not a safetensors file"),
    ],
)
def test_a_header_that_says_something_impossible_is_refused(header: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=says):
        Checkpoint.open(checkpoint(tmp_path, header))


@pytest.mark.parametrize(
    "config", [b"", b"[]", b"null", b'{"architectures": 7}', b'{"architectures": [["x"]]}', b"\xff"]
)
def test_a_config_that_is_none_is_refused(config: bytes, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"config\.json"):
        Checkpoint.open(checkpoint(tmp_path, tensor(), config=config))


@pytest.mark.parametrize("ids", [[1, "2"], "1", [-1], [[1]], {"a": 1}, True, 1.5])
def test_stop_tokens_that_are_no_ids_are_refused(ids: Any, tmp_path: Path) -> None:
    checkpoint(tmp_path, tensor(), config={**CONFIG, "eos_token_id": 7})
    assert Checkpoint.open(tmp_path).stop_tokens() == [7]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 106]}))
    assert Checkpoint.open(tmp_path).stop_tokens() == [1, 106]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(SourceError, match="eos_token_id"):
        Checkpoint.open(tmp_path).stop_tokens()


@pytest.mark.parametrize("length", [0, 2**64 - 1, 1 << 40, 17 << 20])
def test_a_length_is_not_believed(length: int, tmp_path: Path) -> None:
    checkpoint(tmp_path, tensor())
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(32 << 20)  # sparse
    with pytest.raises(SourceError, match=r"truncated|not a safetensors file"):
        Checkpoint.open(tmp_path)


def test_a_header_of_nothing_but_empty_lists_fits_into_memory(tmp_path: Path) -> None:
    count = (16 << 20) // 3 - 10
    header = b'{"x":[' + b",".join([b"[]"] * count) + b"]}"
    assert read(checkpoint(tmp_path, header)) == ["refused"]


def test_damaged_bytes_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    chance = random.Random(18)
    folders = []
    for number in range(300):
        folder = checkpoint(tmp_path / str(number), {f"t{n}": tensor()["x"] for n in range(4)})
        path = folder / chance.choice(("config.json", "model.safetensors"))
        data = bytearray(path.read_bytes())
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.choice((0, 34, 44, 45, 48, 57, 91, 93, 123, 125, 255))
        path.write_bytes(data)
        folders.append(folder)
    outcomes = read(*folders)
    assert len(outcomes) == 300 and outcomes.count("refused") > 100


@pytest.mark.parametrize(
    ("dtype", "width"),
    [("F64", 8), ("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("I32", 4), ("I16", 2), ("I8", 1), ("U8", 1),
     ("BOOL", 1)],
)  # fmt: skip
def test_a_tensor_takes_as_many_bytes_as_its_dtype_says(dtype: str, width: int, tmp_path: Path) -> None:
    header = tensor((3, 5), (0, 15 * width), dtype)
    found = Checkpoint.open(checkpoint(tmp_path, header, bytes(15 * width))).tensors["x"]
    assert (found.dtype, found.shape) == (dtype, (3, 5))
    with pytest.raises(SourceError, match=f"{15 * width + 1} bytes where its shape needs {15 * width}"):
        Checkpoint.open(checkpoint(tmp_path, tensor((3, 5), (0, 15 * width + 1), dtype), bytes(15 * width + 1)))


def test_tensors_are_of_the_shard_that_holds_them_and_as_long_as_it_is(tmp_path: Path) -> None:
    header = {**tensor(), "y": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}
    assert set(Checkpoint.open(checkpoint(tmp_path, header, bytes(16))).tensors) == {"x", "y"}
    assert Checkpoint.open(checkpoint(tmp_path, tensor((1,) * 15 + (4,)))).tensors["x"].shape[-1] == 4
    with pytest.raises(SourceError, match="is truncated"):
        Checkpoint.open(checkpoint(tmp_path, header, bytes(15)))


@pytest.mark.parametrize(("more", "says"), [(0, None), (1, "truncated or not a safetensors file")])
def test_a_header_may_be_sixteen_mebibytes_long(more: int, says: str | None, tmp_path: Path) -> None:
    header = json.dumps(tensor()).encode()
    checkpoint(tmp_path, header + b" " * ((16 << 20) + more - len(header)))
    if says is None:
        assert set(Checkpoint.open(tmp_path).tensors) == {"x"}
    else:
        with pytest.raises(SourceError, match=says):
            Checkpoint.open(tmp_path)


@pytest.mark.parametrize(("more", "says"), [(0, None), (1, "larger than any file of its name")])
def test_a_config_may_be_sixteen_mebibytes_long(more: int, says: str | None, tmp_path: Path) -> None:
    config = json.dumps(CONFIG).encode()
    checkpoint(tmp_path, tensor(), config=config + b" " * ((16 << 20) + more - len(config)))
    if says is None:
        assert Checkpoint.open(tmp_path).config == CONFIG
    else:
        with pytest.raises(SourceError, match=says):
            Checkpoint.open(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"no checkpoint at {tmp_path / 'away'}"):
        Checkpoint.open(tmp_path / "away")
    with pytest.raises(SourceError, match=r"config\.json is missing"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"x": ["y"]}}])
def test_an_index_without_a_map_is_refused(index: object, tmp_path: Path) -> None:
    checkpoint(tmp_path, tensor())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"index\.json cannot be read"):
        Checkpoint.open(tmp_path)


def test_an_empty_map_names_no_shards(tmp_path: Path) -> None:
    checkpoint(tmp_path, tensor())
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(SourceError, match="no safetensors"):
        Checkpoint.open(tmp_path)


def test_a_model_may_name_no_stop_tokens_or_the_first_of_all(tmp_path: Path) -> None:
    found = Checkpoint.open(checkpoint(tmp_path, tensor()))
    assert found.stop_tokens() == []
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert found.stop_tokens() == [0]


def test_files_are_those_that_are_there_with_what_they_hash_to(tmp_path: Path) -> None:
    checkpoint(tmp_path, tensor())
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    listed = Checkpoint.open(tmp_path).files()
    assert [one.name for one in listed] == ["config.json", "tokenizer.json", "model.safetensors"]
    assert listed[1].bytes == 2 and listed[1].sha256 == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize(
    ("folder", "name", "read"),
    [("blobs", "a" * 64, False), ("blobs", "a" * 40, True), ("blobs", "a" * 65, True), ("other", "a" * 64, True)],
)
def test_the_blob_of_a_cache_is_believed_to_be_what_it_is_called(
    folder: str, name: str, read: bool, tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).write_bytes(b"content")
    (tmp_path / "file").symlink_to(tmp_path / folder / name)
    found = digest(tmp_path / "file")
    assert (found.name, found.bytes) == ("file", 7)
    assert found.sha256 == (hashlib.sha256(b"content").hexdigest() if read else name)


def test_a_shard_may_hold_nothing_but_its_header(tmp_path: Path) -> None:
    assert Checkpoint.open(checkpoint(tmp_path, {"__metadata__": {"format": "pt"}}, b"")).tensors == {}
