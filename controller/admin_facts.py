"""Facts of what administrators decide beside topics: finalized features. Part of `controller.facts`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FeaturesFinalized:
    """From here on these features are at these levels; 0: not in force."""

    levels: tuple[tuple[str, int], ...]
