"""Loggers of this process as configs (resource type 8): their levels, until it ends. Kafka's names of levels.

A logger without a level of its own has that of the next one above it. Python has no TRACE: below DEBUG nothing is told
apart, so it is DEBUG. Nothing is stored.
"""

import logging

from broker.config_types import ConfigSource, ConfigType, ConfigValue
from controller.commands import ConfigAlteration
from controller.configs import DELETE, SET
from protocol.errors import ErrorCode, KafkaError

ROOT = "root"
LEVELS = {
    "DEBUG": logging.DEBUG,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
    "INFO": logging.INFO,
    "TRACE": logging.DEBUG,
    "WARN": logging.WARNING,
}
SECRETIVE = ("aiobotocore", "boto3", "botocore")
"""Their debug output holds signatures and session tokens of the bucket: they say nothing below INFO."""
_NAMES = {logging.CRITICAL: "FATAL", logging.ERROR: "ERROR", logging.WARNING: "WARN", logging.INFO: "INFO"}


def keep_secrets() -> None:
    """From now on the `SECRETIVE` are at INFO, whatever the root logger is at."""
    for name in SECRETIVE:
        logging.getLogger(name).setLevel(logging.INFO)


def _names() -> list[str]:
    known = logging.Logger.manager.loggerDict.items()
    return [ROOT, *sorted(name for name, logger in known if isinstance(logger, logging.Logger))]


def describe() -> list[ConfigValue]:
    """Every logger with the level in force."""
    source = ConfigSource.DYNAMIC_BROKER_LOGGER_CONFIG
    return [
        ConfigValue(name, _level(logging.getLogger(name)), False, source, [], ConfigType.UNKNOWN, "")
        for name in _names()
    ]


def _level(logger: logging.Logger) -> str:
    level = logger.getEffectiveLevel()
    return next((name for least, name in _NAMES.items() if level >= least), "DEBUG")


def alter(alteration: ConfigAlteration, validate_only: bool) -> None:
    """Sets or removes levels, all or none. INVALID_CONFIG, INVALID_REQUEST."""
    names = set(_names())
    for change in alteration.changes:
        if change.operation not in (SET, DELETE):
            verb = {2: "APPEND", 3: "SUBTRACT"}.get(change.operation, "Unknown")
            raise KafkaError(
                ErrorCode.INVALID_REQUEST, f"{verb} operation is not allowed for the BROKER_LOGGER resource"
            )
        if change.key not in names:
            raise KafkaError(ErrorCode.INVALID_CONFIG, f"Logger {change.key} does not exist!")
        if change.operation == DELETE and change.key == ROOT:
            raise KafkaError(ErrorCode.INVALID_REQUEST, "Removing the log level of the root logger is not allowed")
        if change.operation == SET and change.value not in LEVELS:
            raise KafkaError(
                ErrorCode.INVALID_CONFIG,
                f"Cannot set the log level of {change.key} to {change.value} as it is not a supported log level. "
                f"Valid log levels are {', '.join(sorted(LEVELS))}",
            )
        if LEVELS.get(change.value or "") == logging.DEBUG and change.key.partition(".")[0] in SECRETIVE:
            raise KafkaError(
                ErrorCode.INVALID_CONFIG,
                f"The debug output of {change.key} holds credentials of the bucket: INFO is its lowest level",
            )
    if validate_only:
        return
    for change in alteration.changes:
        unset = logging.INFO if change.key in SECRETIVE else logging.NOTSET
        level = LEVELS[change.value or ""] if change.operation == SET else unset
        logging.getLogger(change.key).setLevel(level)
