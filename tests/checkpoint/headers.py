"""Safetensors files of a few bytes: malformed ones with what is said of them, and odd ones that are valid."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
FOUR = b"\0" * 4


Found: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensors by full name: their dtypes and shapes."""


class Malformed(NamedTuple):
    """A file that is refused; `says` stands in the sentence, `official` is False where the official reader takes it."""

    name: str
    file: bytes
    says: str
    official: bool = False


class Valid(NamedTuple):
    """A file that is accepted, the full names of its tensors in the order of their data, and its metadata."""

    name: str
    file: bytes
    tensors: Found
    metadata: Mapping[str, str] = MappingProxyType({})


def file_of(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file with this header; `length` is what it claims, where that is not the truth."""
    raw = header.encode() if isinstance(header, str) else header
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def one(dtype: str = '"F32"', shape: str = "[1]", offsets: str = "[0,4]", more: str = "") -> str:
    """Return a header with the one tensor `a`."""
    return f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}}}'


def two(first: tuple[int, int], second: tuple[int, int]) -> str:
    """Return a header with the tensors of bytes `a` and `b` at these offsets."""
    return (
        ",".join(
            f'{brace}"{name}":{{"dtype":"U8","shape":[{end - begin}],"data_offsets":[{begin},{end}]}}'
            for name, brace, (begin, end) in (("a", "{", first), ("b", "", second))
        )
        + "}"
    )


MALFORMED = [
    # the eight bytes in front, and the length they claim
    Malformed("no bytes at all", b"", "0 bytes, too few"),
    Malformed("seven bytes", b"\0" * 7, "7 bytes, too few"),
    Malformed("no header", file_of(""), "not JSON"),
    Malformed("length beyond the file", file_of("{}", length=3), "claims 3 bytes, and the file has 2 left"),
    Malformed("length shorter than the header", file_of("{} ", length=1), "not JSON"),
    Malformed("length beyond the cap", file_of("{}", length=100_000_001), "more than 100000000"),
    Malformed("length of 2^63", file_of("{}", length=2**63), "more than 100000000"),
    Malformed("length that overflows with its own eight bytes", file_of("{}", length=2**64 - 8), "more than 100000000"),
    Malformed("length of 2^64-1", file_of("{}", length=2**64 - 1), "more than 100000000"),
    # text
    Malformed("a byte that is not UTF-8", file_of(b'{"a\xff":' + ONE.encode() + b"}", FOUR), "not UTF-8 at byte 3"),
    Malformed("overlong UTF-8", file_of(b'{"a\xc0\x80":' + ONE.encode() + b"}", FOUR), "not UTF-8"),
    Malformed("a surrogate in UTF-8", file_of(b'{"\xed\xa0\x80":' + ONE.encode() + b"}", FOUR), "not UTF-8"),
    Malformed("a byte order mark", file_of("\ufeff{}"), "not JSON"),
    Malformed("half a surrogate pair in a name", file_of(f'{{"\\ud800":{ONE}}}', FOUR), "surrogate"),
    Malformed("surrogates the wrong way round", file_of(f'{{"\\udc00\\ud800":{ONE}}}', FOUR), "surrogate"),
    Malformed("half a surrogate pair where nobody looks", file_of(one(more=',"x":["\\ud800"]'), FOUR), "surrogate"),
    Malformed("a control character in a name", file_of(f'{{"a\x01":{ONE}}}', FOUR), "control character"),
    Malformed("an escape that is none", file_of(f'{{"\\x":{ONE}}}', FOUR), "not JSON"),
    # JSON
    Malformed("an empty text of blanks", file_of("    "), "not JSON"),
    Malformed("null", file_of("null"), "is null, not an object"),
    Malformed("an array", file_of("[]"), "is an array, not an object"),
    Malformed("a string", file_of('"x"'), "is a string, not an object"),
    Malformed("a trailing comma", file_of(f'{{"a":{ONE},}}', FOUR), "not JSON"),
    Malformed("a second brace", file_of("{}}"), "not JSON"),
    Malformed("padding with zeros", file_of("{}\0\0"), "not JSON"),
    Malformed("padding with a vertical tab", file_of("{}\x0b"), "not JSON"),
    Malformed("a cut text", file_of('{"a":{"dtype":"F32"'), "not JSON"),
    Malformed("single quotes", file_of("{'a':1}"), "not JSON"),
    Malformed("a comment", file_of("{/**/}"), "not JSON"),
    Malformed("NaN", file_of(one(more=',"x":NaN'), FOUR), "NaN is not a number"),
    Malformed("Infinity", file_of(one(more=',"x":-Infinity'), FOUR), "-Infinity is not a number"),
    Malformed("a number out of range", file_of(one(more=',"x":1e999'), FOUR), "out of range"),
    Malformed("an integer out of range", file_of(one(more=f',"x":1{"0" * 5000}'), FOUR), "out of range"),
    Malformed("126 levels in a field", file_of(one(more=',"x":' + "[" * 126 + "]" * 126), FOUR), "too deep"),
    Malformed("126 levels of objects", file_of(one(more=',"x":' + '{"y":' * 126 + "1" + "}" * 126), FOUR), "too deep"),
    Malformed("100,000 levels", file_of('{"a":' * 100_000), "too deep"),
    # metadata
    Malformed("metadata twice", file_of('{"__metadata__":{},"__metadata__":{}}'), "__metadata__ twice"),
    Malformed("metadata null and again", file_of('{"__metadata__":null,"__metadata__":{}}'), "__metadata__ twice"),
    Malformed("metadata with a number", file_of('{"__metadata__":{"a":1}}'), "is a number, not a string"),
    Malformed("metadata with null", file_of('{"__metadata__":{"a":null}}'), "is null, not a string"),
    Malformed("metadata with an object", file_of('{"__metadata__":{"a":{}}}'), "is an object, not a string"),
    Malformed("metadata as an array", file_of('{"__metadata__":[]}'), "is an array, not an object of strings"),
    Malformed("metadata as a tensor", file_of(f'{{"__metadata__":{ONE}}}', FOUR), "is an array, not a string"),
    Malformed("metadata that is not JSON", file_of(f'{{"__metadata__":{{"a" "b"}},"a":{ONE}}}', FOUR), "not JSON"),
    Malformed("metadata not UTF-8", file_of(b'{"__metadata__":{"a":"\xff"}}'), "not UTF-8"),
    # one tensor
    Malformed("a tensor twice", file_of(f'{{"a":{ONE},"a":{ONE}}}', FOUR), "twice", official=True),
    Malformed("a tensor twice, once escaped", file_of(f'{{"a":{ONE},"\\u0061":{ONE}}}', FOUR), "twice", official=True),
    Malformed(
        "an expert twice",
        file_of(f'{{"x.experts.7.w":{ONE},"x.experts.7.w":{ONE}}}', FOUR),
        "twice",
        official=True,
    ),
    Malformed(
        "an empty tensor twice",
        file_of('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "twice",
        official=True,
    ),
    Malformed("a tensor that is null", file_of('{"a":null}'), "is null, not an object of dtype"),
    Malformed("a tensor that is a number", file_of('{"a":1}'), "is a number, not an object of dtype"),
    Malformed("a tensor without fields", file_of('{"a":{}}'), "has no dtype"),
    Malformed("a tensor without shape", file_of('{"a":{"dtype":"F32","data_offsets":[0,4]}}', FOUR), "has no shape"),
    Malformed("a tensor without offsets", file_of('{"a":{"dtype":"F32","shape":[1]}}', FOUR), "has no data_offsets"),
    Malformed("a shape twice", file_of(one(more=',"shape":[1]'), FOUR), "has shape twice"),
    Malformed("an array of two", file_of('{"a":["F32",[1]]}', FOUR), "an array of 2"),
    Malformed("an array of four", file_of('{"a":["F32",[1],[0,4],0]}', FOUR), "an array of 4"),
    # dtype
    Malformed("an unknown dtype", file_of(one('"F128"', offsets="[0,16]"), FOUR * 4), 'has the dtype "F128"'),
    Malformed("a dtype in small letters", file_of(one('"f32"'), FOUR), 'has the dtype "f32"'),
    Malformed("a dtype that injects", file_of(one('"\\u001b[31m"'), FOUR), r'has the dtype "\x1b[31m"'),
    Malformed("a dtype that is a number", file_of(one("17"), FOUR), "a dtype that is a number"),
    Malformed("a dtype as an object of two", file_of(one('{"F32":null,"U8":null}'), FOUR), "a dtype that is an object"),
    Malformed("a dtype with content", file_of(one('{"F32":0}'), FOUR), "a dtype that is an object"),
    # shape
    Malformed("a negative size", file_of(one(shape="[-1]"), FOUR), "has a shape that is not"),
    Malformed("a negative zero", file_of(one(shape="[-0]", offsets="[0,0]")), "has a shape that is not"),
    Malformed("a size with a fraction", file_of(one(shape="[1.0]"), FOUR), "has a shape that is not"),
    Malformed("a size with an exponent", file_of(one(shape="[1e0]"), FOUR), "has a shape that is not"),
    Malformed("a size that is true", file_of(one(shape="[true]"), FOUR), "has a shape that is not"),
    Malformed("a size that is a string", file_of(one(shape='["1"]'), FOUR), "has a shape that is not"),
    Malformed("a size with a leading zero", file_of(one(shape="[01]"), FOUR), "not JSON"),
    Malformed("a size of 2^64", file_of(one(shape=f"[{2**64}]"), FOUR), "has a shape that is not"),
    Malformed("a shape that is an object", file_of(one(shape="{}"), FOUR), "has a shape that is not"),
    Malformed("sizes whose product overflows", file_of(one(shape=f"[2,{2**64 - 2}]"), FOUR), "overflows 64 bits"),
    Malformed("an overflow before a zero", file_of(one(shape=f"[{2**63},2,0]", offsets="[0,0]")), "overflows 64 bits"),
    Malformed("bits that overflow", file_of(one(shape=f"[{2**59}]", offsets="[0,0]")), "overflows 64 bits"),
    Malformed("half a byte", file_of(one('"F4"', offsets="[0,1]"), b"\0"), "4 bits of F4"),
    Malformed("six bits", file_of(one('"F6_E2M3"', "[3]", "[0,3]"), b"\0" * 3), "18 bits of F6_E2M3"),
    # offsets
    Malformed("three offsets", file_of(one(offsets="[0,4,4]"), FOUR), "data_offsets that are not two"),
    Malformed("one offset", file_of(one(offsets="[4]"), FOUR), "data_offsets that are not two"),
    Malformed("offsets backwards", file_of(one(offsets="[4,0]"), FOUR), "begins at byte 4"),
    Malformed("an end before the begin", file_of(two((0, 4), (4, 4)).replace("4,4]", "4,2]"), FOUR), "before its"),
    Malformed("fewer bytes than the shape", file_of(one(shape="[2]"), FOUR), "and F32 of shape [2] has 8"),
    Malformed("more bytes than the shape", file_of(one(shape="[]", offsets="[0,8]"), FOUR * 2), "has 8 bytes of data"),
    Malformed("bytes of a shape with a zero", file_of(one(shape="[0]"), FOUR), "has 4 bytes of data"),
    Malformed("a first tensor that begins late", file_of(one(offsets="[4,8]"), FOUR * 2), "leaves a gap"),
    Malformed("a gap", file_of(two((0, 2), (3, 4)), FOUR), "leaves a gap"),
    Malformed("an overlap", file_of(two((0, 3), (2, 4)), FOUR), "overlaps the tensor before"),
    Malformed("two tensors in one place", file_of(two((0, 4), (0, 4)), FOUR), "overlaps the tensor before"),
    # the end of the file
    Malformed("bytes behind the last tensor", file_of(one(), FOUR + b"x"), "4 bytes of data, and the file has 5"),
    Malformed("a last tensor cut short", file_of(one(), b"xxx"), "4 bytes of data, and the file has 3"),
    Malformed("data without a tensor", file_of("{}", b"x"), "0 bytes of data, and the file has 1"),
]  # fmt: skip

_A: Found = {"a": ("F32", (1,))}

VALID = [
    Valid("no tensors", file_of("{}"), {}),
    Valid("no tensors, only metadata", file_of('{"__metadata__":{"format":"pt"}}'), {}, {"format": "pt"}),
    Valid("blanks in front", file_of("\n\t\r {}"), {}),
    Valid("blanks behind", file_of(one() + "  \r\n\t ", FOUR), _A),
    Valid("blanks everywhere", file_of(one().replace(":", " :\n").replace(",", "\t, "), FOUR), _A),
    Valid("metadata null", file_of('{"__metadata__":null}'), {}),
    Valid("metadata last", file_of(one()[:-1] + ',"__metadata__":{"x":"{\\"}"}}', FOUR), _A, {"x": '{"}'}),
    Valid("metadata with a key twice", file_of('{"__metadata__":{"a":"1","a":"2"}}'), {}, {"a": "2"}),
    Valid("metadata spelled with an escape", file_of('{"__metad\\u0061ta__":{"q":"1"}}'), {}, {"q": "1"}),
    Valid("metadata that is not ASCII", file_of('{"__metadata__":{"ü":"\\ud83d\\ude00é"}}'), {}, {"ü": "😀é"}),
    Valid("an empty name", file_of(f'{{"":{ONE}}}', FOUR), {"": ("F32", (1,))}),
    Valid("a name with a zero", file_of(f'{{"\\u0000":{ONE}}}', FOUR), {"\0": ("F32", (1,))}),
    Valid("a name beyond the basic plane", file_of(f'{{"\\ud83d\\ude00":{ONE}}}', FOUR), {"😀": ("F32", (1,))}),
    Valid("a name with escapes", file_of(f'{{"a\\/\\u00E9\\n":{ONE}}}', FOUR), {"a/é\n": ("F32", (1,))}),
    Valid("a name with braces", file_of(f'{{"x.experts.{{}}.w":{ONE}}}', FOUR), {"x.experts.{}.w": ("F32", (1,))}),
    Valid("a name with 10,000 letters", file_of(f'{{"{"n" * 10_000}":{ONE}}}', FOUR), {"n" * 10_000: ("F32", (1,))}),
    Valid("no dimensions", file_of(one(shape="[]"), FOUR), {"a": ("F32", ())}),
    Valid("40 dimensions", file_of(one(shape=f"[{','.join('1' * 40)}]"), FOUR), {"a": ("F32", (1,) * 40)}),
    Valid("no elements", file_of(one(shape="[2,0]", offsets="[0,0]")), {"a": ("F32", (2, 0))}),
    Valid(
        "a product that would overflow without the zero before it",
        file_of(one(shape=f"[0,{2**64 - 1},{2**64 - 1}]", offsets="[0,0]")),
        {"a": ("F32", (0, 2**64 - 1, 2**64 - 1))},
    ),
    Valid("fields in another order", file_of('{"a":{"data_offsets":[0,4],"shape":[1],"dtype":"F32"}}', FOUR), _A),
    Valid("a tensor as an array", file_of('{"a":["F32",[1],[0,4]]}', FOUR), _A),
    Valid("a dtype as an object", file_of(one('{"F32":null}'), FOUR), _A),
    Valid(
        "unknown fields", file_of(one(more=',"x":1.5e-3,"y":-0,"z":[null,true,{"q":[1e300,-7]}],"x":"again"'), FOUR), _A
    ),
    Valid("an unknown field with a long integer", file_of(one(more=f',"x":{"9" * 300}'), FOUR), _A),
    Valid("125 levels in a field", file_of(one(more=',"x":' + "[" * 125 + "]" * 125), FOUR), _A),
    Valid("data in another order", file_of(two((2, 4), (0, 2)), FOUR), {"b": ("U8", (2,)), "a": ("U8", (2,))}),
    Valid(
        "an empty tensor between others",
        file_of(
            '{"c":{"dtype":"U8","shape":[2],"data_offsets":[2,4]},"b":{"dtype":"BF16","shape":[0],"data_offsets":[2,2]},'
            '"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
            FOUR,
        ),
        {"a": ("U8", (2,)), "b": ("BF16", (0,)), "c": ("U8", (2,))},
    ),
    Valid("two to the byte", file_of(one('"F4"', "[3,2]", "[0,3]"), b"\0" * 3), {"a": ("F4", (3, 2))}),
    Valid("four to three bytes", file_of(one('"F6_E3M2"', "[4]", "[0,3]"), b"\0" * 3), {"a": ("F6_E3M2", (4,))}),
    *(
        Valid(dtype, file_of(one(f'"{dtype}"', "[8]", f"[0,{bits}]"), b"\0" * bits), {"a": (dtype, (8,))})
        for dtype, bits in {
            **dict.fromkeys(("F4",), 4),
            **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
            **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
            **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
            **dict.fromkeys(("I32", "U32", "F32"), 32),
            **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
        }.items()
    ),
]  # fmt: skip
