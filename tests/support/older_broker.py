"""A broker of an earlier release: this one's code without what came with later format levels.

Facts, commands, answers and snapshot sections of later levels are unknown to it, and it registers with its own.
`python -m tests.support.older_broker start ...` is one of the level before the present one.
"""

import sys
from typing import Any, NamedTuple

import controller.state
from controller import commands, facts
from controller.state import ClusterState


class First(NamedTuple):
    """The lowest numbers that came with a format level."""

    command: int
    answer: int
    section: int


FIRST = {2: First(40, 20, 12), 3: First(80, 50, 22)}


def forget_what_came_after(level: int) -> None:
    """Makes this process one of `level`. For ever: nothing brings the tables back."""
    first = FIRST[level + 1]
    for registry, lowest in (
        (facts._facts, facts.FIRST_TAG[level + 1]),
        (commands._commands, first.command),
        (commands._answers, first.answer),
    ):
        for tag in [tag for tag in registry._by_tag if tag >= lowest]:
            del registry._by_tag[tag]
    facts.FORMAT_LEVEL = level
    sections = controller.state.sections_of

    def known(state: ClusterState) -> dict[int, Any]:
        return {number: both for number, both in sections(state).items() if number < first.section}

    controller.state.sections_of = known


if __name__ == "__main__":
    forget_what_came_after(facts.FORMAT_LEVEL - 1)
    from broker.cli import main

    sys.exit(main())
