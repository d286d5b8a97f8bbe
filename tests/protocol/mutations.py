"""What may happen to bytes on their way: for comparing two parsers over input that is nearly right."""

from hypothesis import strategies as st

_UNKNOWN_TAGS = (b"\1\x63\2ab", b"\2\0\0\1\0", b"\1\x85\x80\0\0", b"\x81\0\x07\3xyz", b"\1\0\x10" + bytes(16))


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` after one to three changes: other bytes, tagged fields for a zero, longer varints, too many, too few."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        if not out:
            break
        position = draw(st.integers(0, len(out) - 1))
        kind = draw(st.sampled_from(("flip", "set", "tags", "tags", "overlong", "insert", "delete", "cut")))
        if kind == "flip":
            out[position] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            out[position] = draw(st.sampled_from((0, 1, 2, 0x7F, 0x80, 0xFF)))
        elif kind == "tags":
            zero = out.find(b"\0", position)
            if zero >= 0:
                out[zero : zero + 1] = draw(st.sampled_from(_UNKNOWN_TAGS))
        elif kind == "overlong":
            out[position : position + 1] = bytes((out[position] | 0x80, draw(st.sampled_from((0, 1)))))
        elif kind == "insert":
            out[position:position] = draw(st.binary(min_size=1, max_size=3))
        elif kind == "delete":
            del out[position]
        else:
            del out[position:]
    return bytes(out)
