"""A broker of the release before format level 2: this one's code without what came with that level.

Facts, commands, answers and snapshot sections of level 2 are unknown to it, and it registers with level 1.
`python -m tests.support.older_broker start ...`
"""

import sys
from typing import Any

from controller import commands, facts
from controller.state import ClusterState

FIRST_COMMAND, FIRST_ANSWER, FIRST_SECTION = 40, 20, 12


def forget_level_2() -> None:
    """Makes this process one of level 1. For ever: nothing brings the tables back."""
    facts.FORMAT_LEVEL = 1
    for registry, first in (
        (facts._facts, facts.FIRST_TAG[2]),
        (commands._commands, FIRST_COMMAND),
        (commands._answers, FIRST_ANSWER),
    ):
        for tag in [tag for tag in registry._by_tag if tag >= first]:
            del registry._by_tag[tag]
    sections = ClusterState._sections

    def known(self: ClusterState) -> dict[int, Any]:
        return {number: both for number, both in sections(self).items() if number < FIRST_SECTION}

    ClusterState._sections = known  # type: ignore[method-assign]


if __name__ == "__main__":
    forget_level_2()
    from broker.cli import main

    sys.exit(main())
