"""The generated parts of the README: every setting, every served API with its versions and the test that proves it.

`python -m broker.reference README.md` rewrites what stands between the markers; a test keeps it fresh.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from broker.configs import TOPIC_CONFIGS
from broker.dispatch import HANDLERS, INTERNAL
from broker.dynamic_configs import DYNAMIC
from broker.settings import FIELDS
from broker.settings_sources import ALWAYS_TRUE, WITHOUT_EFFECT, WITHOUT_EFFECT_PREFIXES
from protocol.apis import APIS, PRODUCE_ADVERTISED_MIN, ApiKey


def settings_table() -> str:
    """One row per setting."""
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for key, field in FIELDS.items():
        default = "" if field.default is None else str(field.default)
        shown = str(field.default).lower() if isinstance(field.default, bool) else default
        rows.append(f"| `{key}` | {f'`{shown}`' if shown else ''} | {field.metadata['doc']} |")
    dynamic = ", ".join(f"`{key}`" for key in sorted(DYNAMIC))
    rows += ["", f"Changed at run time by `kafka-configs.sh --entity-type brokers`, for one broker or all: {dynamic}."]
    prefixes = ", ".join(f"`{prefix}*`" for prefix in WITHOUT_EFFECT_PREFIXES)
    keys = ", ".join(f"`{key}`" for key in sorted(WITHOUT_EFFECT))
    rows += ["", f"Kafka settings that are accepted and have no effect here: {prefixes}, {keys}."]
    rows += [line for key, why in ALWAYS_TRUE.items() for line in ("", f"`{key}` is always `true`: {why}.")]
    return "\n".join(rows)


def topic_configs_table() -> str:
    """One row per topic config."""
    rows = ["| topic config | default | meaning |", "| --- | --- | --- |"]
    for name in sorted(TOPIC_CONFIGS):
        definition = TOPIC_CONFIGS[name]
        shown = f"`{definition.default}`" if definition.default else ""
        rows.append(f"| `{name}` | {shown} | {definition.documentation} |")
    return "\n".join(rows)


def api_table() -> str:
    """One row per served API; then what is not served."""
    rows = ["| API | key | versions | proven by |", "| --- | --- | --- | --- |"]
    for key in sorted(HANDLERS):
        entry = HANDLERS[key]
        low = PRODUCE_ADVERTISED_MIN if key is ApiKey.PRODUCE else entry.min_version
        note = f" (advertised from {low})" if low != entry.min_version else ""
        rows.append(
            f"| {APIS[key].name} | {int(key)} | {entry.min_version} to {entry.max_version}{note} | `{entry.test}` |"
        )
    for number, entry in INTERNAL.items():
        rows.append(f"| internal | {number} | {entry.min_version} to {entry.max_version} | `{entry.test}` |")
    missing = ", ".join(f"{api.name} ({key})" for key, api in sorted(APIS.items()) if key not in HANDLERS)
    rows += [
        "",
        "The internal one is what brokers ask the controller; it is served on the inter-broker listener alone and",
    ]
    rows += ["advertised to nobody."]
    rows += ["", f"Not served, and not advertised: {missing}."]
    return "\n".join(rows)


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "topic configs": topic_configs_table,
    "apis": api_table,
}


def rewrite(text: str) -> str:
    """The README with its generated parts made anew; ValueError when a marker is missing."""
    for name, make in PARTS.items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
        head, found_begin, rest = text.partition(begin)
        _, found_end, tail = rest.partition(end)
        if not found_begin or not found_end:
            raise ValueError(f"the markers of {name!r} are missing")
        text = f"{head}{begin}{make()}\n{end}{tail}"
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(rewrite(path.read_text()))
