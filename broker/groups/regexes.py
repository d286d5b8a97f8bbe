"""Regular expressions of subscriptions: RE2's syntax, as Kafka's RE2/J has it, matched in time linear in the name.

RE2 itself is used. It knows two things that RE2/J does not, and which are refused: `\\C` (a single byte) and names
`(?P=...)`. Expressions are bounded: in length, and in the memory of what they are compiled to; Kafka bounds neither.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable

import re2

from protocol.errors import ErrorCode, KafkaError

REGEX_CHARS_MAX = 10_000
"""Topic names have at most 249 characters: what is longer is no list of names any more."""
REGEX_MEMORY_MAX = 1024 * 1024
WORK_PER_SLICE = 200_000
"""Characters times instructions of the compiled expression: a millisecond at worst. Where an expression has so many
states that they do not fit the memory, each character takes as long as the expression is large: 8 ms for a name."""


def check_regex(regex: str) -> None:
    """INVALID_REGULAR_EXPRESSION if topics cannot be matched with it."""
    try:
        _compile(regex)
    except ValueError as error:
        raise KafkaError(
            ErrorCode.INVALID_REGULAR_EXPRESSION,
            f"SubscribedTopicRegex `{regex[:200]}` is not a valid regular expression: {error}.",
        ) from error


def resolve(regexes: Iterable[str], names: Iterable[str]) -> Generator[None, None, dict[str, tuple[str, ...]]]:
    """Topics that each expression matches as a whole, sorted; stops between slices. An expression that cannot be
    compiled, which no member could have sent to this version, matches nothing."""
    matched: dict[str, list[str]] = {}
    compiled = []
    for regex in regexes:
        matched[regex] = []
        try:
            compiled.append((_compile(regex), matched[regex]))
        except ValueError:
            continue
        yield
    work = 0
    for name in sorted(names):
        for pattern, found in compiled:
            if pattern.fullmatch(name):
                found.append(name)
            work += (len(name) + 1) * pattern.programsize
            if work >= WORK_PER_SLICE:
                work = 0
                yield
    return {regex: tuple(found) for regex, found in matched.items()}


def _compile(regex: str) -> re2._Regexp:
    """ValueError: no expression that is served."""
    if len(regex) > REGEX_CHARS_MAX:
        raise ValueError(f"longer than {REGEX_CHARS_MAX} characters")
    if _has_byte_class(regex):
        raise ValueError("invalid escape sequence: `\\C`")
    options = re2.Options()
    options.max_mem = REGEX_MEMORY_MAX
    options.log_errors = False
    try:
        return re2.compile(regex, options)
    except re2.error as error:
        problem = error.args[0] if error.args else "not an expression"
        raise ValueError(problem.decode(errors="replace") if isinstance(problem, bytes) else str(problem)) from error


def _has_byte_class(regex: str) -> bool:
    position = regex.find("\\")
    while 0 <= position < len(regex) - 1:
        escaped = regex[position + 1]
        if escaped == "C":
            return True
        end = regex.find("\\E", position + 2) if escaped == "Q" else position
        if end < 0:
            return False
        position = regex.find("\\", end + 2)
    return False
