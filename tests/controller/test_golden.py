"""The bytes of the first release are read for ever, and this version still writes them."""

from collections.abc import Callable

import msgpack
import pytest

from controller import facts as f
from controller.commands import ANSWER_TAGS, decode_answer
from controller.entries import decode_entry, unframe_snapshot
from controller.state import ClusterState
from tests.controller import golden
from tests.controller.builders import Cluster


def test_there_is_a_golden_form_of_every_fact_and_answer() -> None:
    assert {type(fact) for facts, _ in golden.TEXTS.values() for fact in facts} == set(f.TAGS.values())
    assert {type(answer) for _, answers in golden.TEXTS.values() for answer in answers} == set(ANSWER_TAGS.values())


@pytest.mark.parametrize("name", golden.TEXTS)
def test_facts_and_answers(name: str) -> None:
    lines = (golden.FILES / name).read_text().splitlines()
    facts, answers = golden.TEXTS[name]
    expected: list[object] = [*facts, *answers]
    assert len(lines) == len(expected)
    for line, value in zip(lines, expected):
        kind, text = line.split()
        payload = msgpack.unpackb(bytes.fromhex(text), use_list=False)
        assert (f.decode_fact(payload) if kind == "fact" else decode_answer(payload)) == value


def test_entry() -> None:
    assert decode_entry((golden.FILES / "entry-1.bin").read_bytes()) == golden.entry()


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("snapshot-1", golden.cluster),
        ("merging-snapshot-2", golden.merging),
        ("forgetting-snapshot-3", golden.forgetting),
        ("compaction-snapshot-3", golden.compacting),
        ("administration-snapshot-3", golden.administration),
    ],
)
def test_snapshot(name: str, made: Callable[[], Cluster]) -> None:
    head, encoded = unframe_snapshot((golden.FILES / f"{name}.bin").read_bytes())
    state = made().state
    assert (head.position, head.entry_hash) == (state.position, state.entry_hash)
    assert ClusterState.decode(bytes(encoded)) == state


def test_this_version_writes_the_same_bytes() -> None:
    for name, data in golden.files().items():
        assert (golden.FILES / name).read_bytes() == data, f"{name}: a format changed; write a new version of it"
