"""GGUF files: read by the ``gguf`` package, read back bit for bit, and refused when damaged."""

from __future__ import annotations

import contextlib
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.deploy.export.gguf import check, read, read_metadata, write
from bitsmith.deploy.export.gguf.block_types import BLOCK_TYPES
from bitsmith.deploy.export.gguf.blocks import from_blocks
from bitsmith.errors import ExportError, InputError, WeightsError
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.codebooks import cluster
from bitsmith.numbers.formats.codebook import codebook4
from bitsmith.numbers.formats.integer import int4, int6, int8, uint4
from bitsmith.numbers.formats.minifloat import fp16
from bitsmith.numbers.named_schemes import GGUF_SCHEMES, named_scheme
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerChannel, PerGroup, Scheme

gguf = pytest.importorskip("gguf")


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model() -> dict[str, QTensor | torch.Tensor]:
    tensors: dict[str, QTensor | torch.Tensor] = {
        f"layer.{name}.weight": quantize(weights(6, 512, seed=i), scheme)
        for i, (name, scheme) in enumerate(GGUF_SCHEMES.items())
    }
    tensors["conv.weight"] = quantize(weights(2, 3, 4, 64), GGUF_SCHEMES["Q8_0"])
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        tensors[f"norm.{dtype}"] = weights(7).to(dtype)
    tensors["steps"] = torch.arange(3)
    tensors["scalar"] = torch.tensor(1.5)
    tensors["none"] = torch.zeros(0, 4)
    for name in ("Q4_1", "Q3_K", "Q4_K"):
        rows, kind = quantize(weights(1, 512), GGUF_SCHEMES[name]), BLOCK_TYPES[name]
        tensors[f"empty.{name}"] = from_blocks(
            torch.empty(0, dtype=torch.uint8), kind, (0, 512), rows.scheme
        )
    tensors["turned"] = weights(3, 5).T
    return tensors


def same(a: QTensor | torch.Tensor, b: QTensor | torch.Tensor) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    parts = ("codes", "scale", "zero_point", "offset")
    pairs = [(getattr(a, k), getattr(b, k)) for k in parts]
    return a.scheme == b.scheme and all(
        (x is None and y is None) or torch.equal(x, y) for x, y in pairs
    )


def test_what_is_written_comes_back_and_the_package_reads_the_same(tmp_path: Path) -> None:
    tensors = model()
    assert check(tensors) == []
    path = write(tensors, tmp_path / "model.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]
    back = read(path)
    assert list(back) == list(tensors)
    assert all(same(tensors[name], back[name]) for name in tensors)
    reader = gguf.GGUFReader(path)
    assert [t.name for t in reader.tensors] == list(tensors)
    for t in reader.tensors:
        mine = tensors[t.name]
        assert tuple(reversed(t.shape.tolist())) == tuple(mine.shape)
        assert t.data_offset % 32 == 0
        if not mine.shape.numel():
            assert t.n_elements == 0
        elif isinstance(mine, QTensor):
            values = gguf.quants.dequantize(t.data, t.tensor_type).reshape(mine.shape)
            assert np.array_equal(values, mine.dequantize().numpy())
        elif mine.dtype == torch.bfloat16:
            assert t.tensor_type.name == "BF16"
        else:
            assert np.array_equal(t.data.reshape(mine.shape), mine.numpy())
    assert reader.fields["general.architecture"].contents() == "bitsmith"
    assert reader.fields["general.quantization_version"].contents() == 2


def test_a_file_of_the_package_is_read(tmp_path: Path) -> None:
    path, x = tmp_path / "theirs.gguf", weights(4, 64).numpy()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("list", ["a", "bc"])
    writer.add_float32("eps", 1e-5)
    writer.add_custom_alignment(128)
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.add_tensor("float", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values = read(path)
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        expected = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
        assert values[name].scheme == GGUF_SCHEMES[name]
        assert np.array_equal(values[name].dequantize().numpy(), expected)
    assert np.array_equal(values["float"].numpy(), x)
    metadata = read_metadata(path)
    assert metadata["list"] == ["a", "bc"]
    assert metadata["eps"] == pytest.approx(1e-5)


def test_schemes_that_say_more_than_the_type_come_back(tmp_path: Path) -> None:
    schemes = [
        Scheme(int8, granularity=PerGroup(32, axis=1), scale_format=fp16),
        Scheme(int4, granularity=PerGroup(32), scale_format=fp16, rounding="stochastic", seed=3),
        named_scheme("superblock_int6"),
    ]
    tensors = {f"w{i}": quantize(weights(4, 256), s) for i, s in enumerate(schemes)}
    back = read(write(tensors, tmp_path / "m.gguf"))
    assert all(same(tensors[name], back[name]) for name in tensors)


def test_metadata_of_every_kind(tmp_path: Path) -> None:
    given_ = {
        "general.architecture": "llama",
        "flag": True,
        "small": 7,
        "below": -7,
        "large": 2**40,
        "larger": 2**64 - 1,
        "half": 0.5,
        "exact": 0.1,
        "tokens": ["a", "ü", ""],
        "scores": [0.5, -math.inf],
        "types": [1, 2, -3],
        "flags": [True, False],
        "empty": [],
    }
    path = write({"w": weights(3)}, tmp_path / "m.gguf", metadata=given_)
    assert read_metadata(path) == given_ | {"general.quantization_version": 2}
    fields = gguf.GGUFReader(path).fields
    for key, value in given_.items():
        assert fields[key].contents() == value or key == "empty"


def test_everything_that_cannot_be_written_is_listed(tmp_path: Path) -> None:
    x = weights(4, 256)
    tensors = {
        "a": quantize(x, Scheme(int6, granularity=PerChannel(0))),
        "b": quantize(x, Scheme(uint4, False, PerGroup(32), scale_format=fp16)),
        "c": cluster(x, Scheme(codebook4)),
        "d": torch.zeros(3, dtype=torch.bool),
        "e": torch.zeros(1, 1, 1, 1, 1),
        "f": torch.empty(3, device="meta"),
        "g" * 64: x,
        "h": [1.0],
    }
    problems = check(tensors, {"key": object(), "list": [1, "a"], "general.alignment": 64})
    text = "\n".join(problems)
    for part in (
        "a: no block type holds int6 with PerChannel(axis=0)",
        "b: no block type holds uint4",
        "c: no block type holds codebook4",
        "d: there is no type for torch.bool",
        "e: it has 5 axes, and a tensor at most 4",
        "f: it is on the meta device",
        "its name has 64 bytes",
        "h: it is a list, not a tensor",
        "key: a value is a bool, int, float, str or a list, not object",
        "list: a list is of one type, not int, str",
        "general.alignment: this key is written here",
    ):
        assert part in text
    assert len(problems) == 11
    with pytest.raises(ExportError, match="GGUF cannot represent:\n  a: no block type"):
        write(tensors, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_or_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write({"w": weights(3)}, tmp_path / "no" / "m.gguf")
    with pytest.raises(InputError, match=r"cannot read .*none"):
        read(tmp_path / "none.gguf")


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    class Failing(dict):
        asked = 0

        def __getitem__(self, name: str) -> torch.Tensor:
            self.asked += 1
            if self.asked > 2:
                raise RuntimeError("disk of the model is gone")
            return weights(3)

    (tmp_path / "m.gguf").write_bytes(b"before")
    with pytest.raises(RuntimeError, match="is gone"):
        write(Failing(a=0, b=0), tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"before"


def small() -> dict[str, QTensor | torch.Tensor]:
    scheme = Scheme(int8, granularity=PerGroup(32), scale_format=fp16)
    return {
        "q": quantize(weights(1, 256), GGUF_SCHEMES["Q4_K"]),
        "r": quantize(weights(1, 32), scheme),
        "x": weights(2),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(small(), tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


def test_every_truncation_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    last = len(whole) - 24  # the last tensor has 8 bytes; what follows pads the file
    for size in range(0, last, 3):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"cut\.gguf"):
            read(path)
    path.write_bytes(whole[:last])
    assert all(same(a, b) for a, b in zip(small().values(), read(path).values(), strict=True))


@given(data=st.data())
def test_a_changed_byte_is_an_error_or_another_value_but_never_a_crash(
    data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(changed)
    with contextlib.suppress(WeightsError):  # any other error fails
        values = read(path)
        assert all(isinstance(v, QTensor | torch.Tensor) for v in values.values())


def header(count: int, keys: int, rest: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, count, keys) + rest


def tensor(name: bytes, dims: list[int], kind: int, offset: int = 0) -> bytes:
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
    return head + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


def key(name: bytes, kind: int, rest: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + rest


ROW = struct.pack("<IQ", 9, 1)
HOSTILE = {
    "empty": (b"", "is empty"),
    "other": (b"PK\3\4" + bytes(40), "not a GGUF file: it begins with b'PK"),
    "version": (header(0, 0, b"", 1), "of version 1; little-endian ones of version 2 and 3"),
    "big-endian": (header(0, 0, b"", 3 << 24), "a GGUF file big-endian"),
    "tensors": (header(2**60, 0, bytes(64)), "the file ends early"),
    "keys": (header(0, 2**60, bytes(64)), "the file ends early"),
    "text": (header(0, 1, struct.pack("<Q", 2**63) + bytes(64)), "the file ends early"),
    "utf-8": (header(0, 1, key(b"\xff\xfe", 4, bytes(4))), "is not UTF-8"),
    "value": (header(0, 1, key(b"k", 77, bytes(64))), "no value has type 77"),
    "list": (header(0, 1, key(b"k", 9, struct.pack("<IQ", 4, 2**62))), "the file ends early"),
    "lists": (header(0, 1, key(b"k", 9, ROW * 6 + bytes(64))), "no value has type 9"),
    "key twice": (header(0, 2, key(b"k", 4, bytes(4)) * 2), "the key k is there twice"),
    "twice": (header(2, 0, tensor(b"w", [1], 0) * 2 + bytes(64)), "tensors are there twice: w"),
    "axes": (header(1, 0, tensor(b"w", [1] * 5, 0) + bytes(64)), "at most 4 axes, not 5"),
    "size": (header(1, 0, tensor(b"w", [2**40] * 3, 0) + bytes(64)), "no file holds a tensor of"),
    "nothing": (header(1, 0, tensor(b"w", [0, 2**63], 0) + bytes(64)), "no file holds a tensor"),
    "offset": (header(1, 0, tensor(b"w", [4], 0, 2**63) + bytes(64)), "w: its 16 bytes .* end"),
    "type": (header(1, 0, tensor(b"w", [256], 16) + bytes(64)), "w: type 16 cannot be read"),
    "row": (header(1, 0, tensor(b"w", [172], 12) + bytes(999)), "rows of 172 values are not whole"),
    "alignment": (
        header(0, 1, key(b"general.alignment", 4, struct.pack("<I", 24))),
        "general.alignment is a power of two, not 24",
    ),
    "schemes": (
        header(0, 1, key(b"bitsmith.schemes", 8, struct.pack("<Q", 3) + b"[1]")),
        "bitsmith.schemes cannot be read",
    ),
    "stranger": (
        header(
            0, 1, key(b"bitsmith.schemes", 8, struct.pack("<Q", 25) + b'{"w":{"format": "int8"}}\n')
        ),
        "bitsmith.schemes names what is not there: w",
    ),
}


@pytest.mark.parametrize(("data", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_with_the_reason(
    data: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=reason):
        read(path)


def test_a_scheme_that_does_not_fit_its_type_is_refused(whole: bytes, tmp_path: Path) -> None:
    changed = whole.replace(b'"size": 32', b'"size": 16')
    assert changed != whole
    (tmp_path / "m.gguf").write_bytes(changed)
    with pytest.raises(
        WeightsError, match=r"r: bitsmith\.schemes gives a scheme that Q8_0 does not"
    ):
        read(tmp_path / "m.gguf")
