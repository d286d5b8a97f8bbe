"""What configs of topics, brokers and groups have in common: Kafka's types and sources, definitions, how a text is
judged. Words of refusals are Kafka's: tools show them.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from broker.settings import INT_MAX, LONG_MAX
from protocol.errors import ErrorCode, KafkaError


class ConfigType(IntEnum):
    """The type numbers of DescribeConfigs."""

    UNKNOWN = 0
    BOOLEAN = 1
    STRING = 2
    INT = 3
    SHORT = 4
    LONG = 5
    DOUBLE = 6
    LIST = 7
    CLASS = 8
    PASSWORD = 9


class ConfigSource(IntEnum):
    """The source numbers of DescribeConfigs."""

    TOPIC_CONFIG = 1
    DYNAMIC_BROKER_CONFIG = 2
    DYNAMIC_DEFAULT_BROKER_CONFIG = 3
    STATIC_BROKER_CONFIG = 4
    DEFAULT_CONFIG = 5
    DYNAMIC_BROKER_LOGGER_CONFIG = 6
    GROUP_CONFIG = 8


class Synonym(NamedTuple):
    """One place a value can come from."""

    name: str
    value: str | None
    source: ConfigSource


class ConfigValue(NamedTuple):
    """One effective config with all that DescribeConfigs tells of it. A `sensitive` one shows no value."""

    name: str
    value: str | None
    read_only: bool
    source: ConfigSource
    synonyms: list[Synonym]
    type: ConfigType
    documentation: str
    sensitive: bool = False


class Definition(NamedTuple):
    """Definition of one config; `synonym` names the broker key whose value is the default."""

    name: str
    type: ConfigType
    default: str
    synonym: str
    documentation: str
    at_least: float | None = None
    at_most: float | None = None
    one_of: tuple[str, ...] = ()
    or_equal: float | None = None
    """A value that is fine beside those within the bounds."""
    may_be: Callable[[list[str]], str | None] | None = None
    """What is wrong with the items of a list, if anything."""


_RANGES = {ConfigType.SHORT: 2**15 - 1, ConfigType.INT: INT_MAX, ConfigType.LONG: LONG_MAX}


def invalid(name: str, value: object, why: str) -> KafkaError:
    """INVALID_CONFIG in Kafka's words."""
    return KafkaError(ErrorCode.INVALID_CONFIG, f"Invalid value {value} for configuration {name}: {why}")


def list_value(value: str) -> list[str]:
    """The parts of a list config."""
    return [part.strip() for part in value.split(",") if part.strip()]


def _number(definition: Definition, text: str) -> float:
    convert: Callable[[str], float] = float if definition.type is ConfigType.DOUBLE else int
    wrong = f"Not a number of type {definition.type.name}"
    try:
        number = convert(text.strip().replace("_", " "))  # "1_000" is a number for Python alone
    except ValueError:
        raise invalid(definition.name, text, wrong) from None
    limit = _RANGES.get(definition.type)
    if limit is not None and not -limit - 1 <= number <= limit:
        raise invalid(definition.name, text, wrong)
    least, most, other = definition.at_least, definition.at_most, definition.or_equal
    fits = (least is None or number >= least) and (most is None or number <= most)
    if not fits and number != other:
        if other is not None:
            raise invalid(definition.name, number, f"Value must be between {least} and {most} or equal to {other}")
        if least is not None and not number >= least:
            raise invalid(definition.name, number, f"Value must be at least {least}")
        raise invalid(definition.name, number, f"Value must be no more than {most}")
    return number


def check_value(definition: Definition, value: str) -> None:
    """Raise KafkaError(INVALID_CONFIG) unless the config may have this text as its value."""
    name = definition.name
    if definition.type is ConfigType.BOOLEAN:
        if value.strip().lower() not in ("true", "false"):
            raise invalid(name, value, "Expected value to be either true or false")
    elif definition.type is ConfigType.LIST:
        parts = list_value(value)
        for part in parts:
            if definition.one_of and part not in definition.one_of:
                raise invalid(name, part, f"String must be one of: {', '.join(definition.one_of)}")
        problem = definition.may_be(parts) if definition.may_be is not None and parts else None
        if problem is not None:
            raise invalid(name, f"[{', '.join(parts)}]", problem)
    elif definition.type in (ConfigType.SHORT, ConfigType.INT, ConfigType.LONG, ConfigType.DOUBLE):
        _number(definition, value)
    elif definition.one_of and value not in definition.one_of:
        raise invalid(name, value, f"String must be one of: {', '.join(definition.one_of)}")
