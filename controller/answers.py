"""First answers of recent commands, so that asking again with the same id never decides twice."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgpack

ANSWERS_MAX = 1_024
ANSWER_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class AnswerTable:
    """Encoded answers by command id, oldest first, bounded by number and bytes; the newest always stays."""

    answers: dict[bytes, bytes] = field(default_factory=dict)
    size: int = 0

    def remember(self, command_id: bytes, answer: Any) -> None:
        """Keeps the answer (`[tag, fields...]`); forgets the oldest beyond the bounds."""
        if command_id in self.answers:
            return
        packed: bytes = msgpack.packb(answer)
        self.answers[command_id] = packed
        self.size += len(packed)
        while len(self.answers) > 1 and (len(self.answers) > ANSWERS_MAX or self.size > ANSWER_BYTES_MAX):
            self.size -= len(self.answers.pop(next(iter(self.answers))))

    def get(self, command_id: bytes) -> Any | None:
        """The answer as `[tag, fields...]` in tuples, or None."""
        packed = self.answers.get(command_id)
        return None if packed is None else msgpack.unpackb(packed, use_list=False)

    def rows(self) -> Iterator[list[Any]]:
        """Snapshot rows, oldest first."""
        for command_id, packed in self.answers.items():
            yield [command_id, packed]

    def load(self, row: tuple[Any, ...]) -> None:
        """Adds an answer from its snapshot row."""
        self.answers[row[0]] = row[1]
        self.size += len(row[1])
