"""The keys and values at the head of a GGUF file."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, final

from bitsmith.errors import WeightsError

__all__ = ["Cursor", "Value", "metadata_problems", "pack_string", "pack_value", "read_value"]

Value = bool | int | float | str | Sequence["Value"]
"""A value: a bool, an integer, a float, a string, or a list of one of these."""

_STRUCTS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_DEPTH = 4


def metadata_problems(metadata: Mapping[str, Value]) -> list[str]:
    """Return every key and value that cannot be written."""
    found = []
    for key, value in metadata.items():
        if not isinstance(key, str) or not key or not key.isascii() or len(key) > 65535:
            found.append(f"key {key!r} is not a text of ASCII letters")
        try:
            pack_value(value)
        except (TypeError, struct.error, OverflowError) as error:
            found.append(f"{key}: {error}")
    return found


def pack_string(text: str) -> bytes:
    """Return a string in the file's form: its length and its UTF-8 bytes."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def pack_value(value: Value) -> bytes:
    """Return a value with its type in the file's form.

    Integers take uint32 where they fit, else int32, int64 or uint64; floats take float32 where
    it is exact, else float64. A list is of one type, the widest that one of its elements needs.

    Raises:
        TypeError: another type, or a list of several.
    """
    if isinstance(value, str | bool | int | float):
        kind = _kind([value])
        return struct.pack("<I", kind) + _pack(value, kind)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise TypeError(f"a value is a bool, int, float, str or a list, not {type(value).__name__}")
    kind = _kind(value)
    head = struct.pack("<IIQ", _ARRAY, kind, len(value))
    return head + b"".join(_pack(item, kind) for item in value)


def _pack(value: Any, kind: int) -> bytes:
    return pack_string(value) if kind == _STRING else struct.pack(_STRUCTS[kind], value)


def _kind(values: Sequence[Any]) -> int:
    kinds = {type(v) for v in values}
    if kinds <= {str}:
        return _STRING
    if kinds == {bool}:
        return _BOOL
    if kinds == {int}:
        low, high = min(values), max(values)
        fits = ((4, 0, 2**32), (5, -(2**31), 2**31), (11, -(2**63), 2**63), (10, 0, 2**64))
        for kind, least, end in fits:
            if least <= low and high < end:
                return kind
        raise TypeError(f"an integer has at most 64 bits, not {low} to {high}")
    if kinds <= {int, float}:
        return 6 if all(_is_float32(v) for v in values) else 12
    raise TypeError(f"a list is of one type, not {', '.join(sorted(k.__name__ for k in kinds))}")


def _is_float32(value: float) -> bool:
    try:
        return value != value or struct.unpack("<f", struct.pack("<f", value))[0] == value
    except OverflowError:
        return False


@final
class Cursor:
    """Reads bytes one after the other, and refuses to read what is not there."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return len(self.data) - self.at

    def number(self, form: str) -> Any:
        """Return one number in the form of :mod:`struct`."""
        size = struct.calcsize(form)
        self.need(size)
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return value

    def string(self) -> str:
        """Return a string.

        Raises:
            WeightsError: it is not UTF-8.
        """
        size = self.number("<Q")
        self.need(size)
        raw = bytes(self.data[self.at : self.at + size])
        self.at += size
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise WeightsError(f"text at byte {self.at - size} is not UTF-8: {error}") from error

    def need(self, size: int) -> None:
        """Refuse where fewer bytes are left.

        Raises:
            WeightsError: the file ends before.
        """
        if size > self.left:
            raise WeightsError(
                f"the file ends early: {size} bytes are needed at byte {self.at} of "
                f"{len(self.data)}"
            )


def read_value(cursor: Cursor, kind: int | None = None, depth: int = 0) -> Any:
    """Return the value at the cursor; its type is read first where it is not given.

    Raises:
        WeightsError: the file ends early, or there is no such type.
    """
    kind = cursor.number("<I") if kind is None else kind
    if kind == _STRING:
        return cursor.string()
    if kind in _STRUCTS:
        return cursor.number(_STRUCTS[kind])
    if kind != _ARRAY or depth == _DEPTH:
        raise WeightsError(f"no value has type {kind} (at byte {cursor.at})")
    inner, count = cursor.number("<I"), cursor.number("<Q")
    if inner in _STRUCTS:
        size = struct.calcsize(_STRUCTS[inner])
        cursor.need(size * count)
        start, cursor.at = cursor.at, cursor.at + size * count
        form = f"<{count}{_STRUCTS[inner][1]}"
        return list(struct.unpack_from(form, cursor.data, start))
    cursor.need(8 * count)  # the least that a string or a list takes
    return [read_value(cursor, inner, depth + 1) for _ in range(count)]
