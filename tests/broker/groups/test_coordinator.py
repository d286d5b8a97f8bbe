"""Which partition a group belongs to."""

from __future__ import annotations

import pytest

from broker.coordination.topic import java_hash, partition_for


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("a", 97),
        ("my-group", -1906497762),
        ("polygenelubricants", -(2**31)),
        ("\U0001f600", 1772899),
        ("é", 233),
    ],
)
def test_java_hash(text: str, value: int) -> None:
    expected = 0
    for unit in memoryview(text.encode("utf-16-le")).cast("H"):
        expected = (expected * 31 + unit) % 2**32
    assert java_hash(text) % 2**32 == expected
    assert java_hash(text) == value


def test_partition() -> None:
    assert partition_for("polygenelubricants", 50) == 0, "the least integer has no absolute value in Java"
    assert partition_for("a", 50) == 47
    assert all(0 <= partition_for(f"group-{number}", 50) < 50 for number in range(1000))
    assert len({partition_for(f"group-{number}", 50) for number in range(1000)}) == 50
