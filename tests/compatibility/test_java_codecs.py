"""Our codecs against Kafka's own classes: every version of every message, the same bytes and fields both ways."""

import base64
import json
import re
import subprocess
import zipfile
from pathlib import Path
from random import Random  # noqa: TID251
from typing import Any

import pytest

from protocol import messages as m
from protocol import schema
from protocol.apis import APIS
from protocol.codec import ApiMessage
from protocol.errors import ProtocolError
from protocol.schema import Field, Struct
from tests.compatibility import java
from tests.protocol.instances import every_version, random_message

pytestmark = pytest.mark.compatibility

SEED = 20_240_613


@pytest.fixture(scope="module")
def classpath() -> str:
    modules = ("group", "transaction", "share")
    jars = java.fetch(java.kafka("kafka-clients", *(f"kafka-{module}-coordinator" for module in modules)))
    return java.compile_source(Path(__file__).with_name("Codecs.java"), jars)


def java_name(cls: type[ApiMessage]) -> str:
    if cls.record_type is None:
        suffix = "Data" if cls.__name__.endswith(("Request", "Response", "Header")) else ""
        return f"org.apache.kafka.common.message.{cls.__name__}{suffix}"
    module = {"Transaction": "transaction", "ShareSnap": "share", "ShareUpda": "share"}
    found = [value for key, value in module.items() if cls.__name__.startswith(key)]
    return f"org.apache.kafka.coordinator.{found[0] if found else 'group'}.generated.{cls.__name__}"


def ask(classpath: str, questions: list[tuple[type[ApiMessage], int, int, bytes]]) -> list[list[str]]:
    """What Java answers to (class, version of the bytes, version wanted, bytes): encoded in hex, JSON."""
    lines = [f"{java_name(cls)} {have} {want} {data.hex() or '-'}" for cls, have, want, data in questions]
    command = [java.tool("java"), "-Xmx512m", "-cp", classpath, "Codecs"]
    done = subprocess.run(
        command, input="\n".join(lines), capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [line.split(" ", 1) for line in done.stdout.rstrip("\n").split("\n")]
    assert len(answers) == len(questions)
    return answers


def as_json(ours: Any, struct: Struct, version: int) -> dict[str, Any]:
    """What Kafka's JSON converters make of it: camel case, no tagged fields that have their default."""
    default, found = type(ours)(), {}
    for item in struct.fields:
        value = getattr(ours, item.name)
        if version in item.versions and not (version in item.tagged and value == getattr(default, item.name)):
            first, *rest = item.name.split("_")
            found[first + "".join(word.capitalize() for word in rest)] = json_value(value, item, version)
    return found


def json_value(value: Any, item: Field, version: int) -> Any:
    if isinstance(value, list):
        return [json_value(one, item, version) for one in value]
    if value is None:
        return None
    if item.struct is not None:
        return as_json(value, item.struct, version)
    if item.type == "records":
        return ""  # the converters leave them out
    if item.type == "bytes":
        return base64.b64encode(value).decode()
    if item.type == "uuid":
        return base64.urlsafe_b64encode(value).decode().rstrip("=")
    if value == float("inf"):
        return "Infinity"
    return value


def test_every_version_of_every_message(classpath: str) -> None:
    rng = Random(SEED)
    messages = [
        (cls, version, random_message(cls, version, rng)) for cls, version in every_version() for _ in range(12)
    ]
    answers = ask(classpath, [(cls, version, version, one.encode(version)) for cls, version, one in messages])
    for (cls, version, message), (encoded, text) in zip(messages, answers, strict=True):
        assert encoded != "?", (cls, version, text)
        data = bytes.fromhex(encoded.strip("-"))
        assert data == message.encode(version), (cls, version)
        assert cls.decode(data, version) == message, (cls, version)
        assert json.loads(text) == as_json(message, cls.schema.root, version), (cls, version)


def test_what_a_version_cannot_say(classpath: str) -> None:
    """A message of one version encoded as another: the same fields are ignorable, the same refused."""
    rng = Random(SEED + 1)
    questions, ours = [], []
    for cls, have in every_version():
        for want in cls.versions:
            data = random_message(cls, have, rng).encode(have)
            questions.append((cls, have, want, data))
            try:
                ours.append(cls.decode(data, have).encode(want).hex() or "-")
            except ProtocolError:
                ours.append("!")
    assert "!" in ours
    for question, mine, theirs in zip(questions, ours, ask(classpath, questions), strict=True):
        assert mine == theirs[0], question


def test_defaults(classpath: str) -> None:
    """What is left out is what Kafka leaves out, and reads as it reads there."""
    questions = [(cls, version, version, cls().encode(version)) for cls, version in every_version()]
    for (cls, version, _, data), (encoded, text) in zip(questions, ask(classpath, questions), strict=True):
        assert bytes.fromhex(encoded.strip("-")) == data, (cls, version)
        assert json.loads(text) == as_json(cls(), cls.schema.root, version), (cls, version)


def inside(classpath: str, jar: str, pattern: str) -> dict[str, str]:
    """Name -> text of the files in one of the jars whose path matches; group 1 is the name."""
    (path,) = Path(classpath.split(":")[-1]).parent.glob(f"{jar}-{java.KAFKA_VERSION}.jar")
    with zipfile.ZipFile(path) as archive:
        found = ((re.fullmatch(pattern, name), name) for name in archive.namelist())
        return {match[1]: archive.read(name).decode("latin-1") for match, name in found if match}


def test_we_have_all_messages_of_every_api(classpath: str) -> None:
    """And the table of APIs has their versions, by the definitions that lie in Kafka's own jar."""
    seen = set()
    for text in inside(classpath, "kafka-clients", r"common/message/(\w+)\.json").values():
        told = json.loads("\n".join(line for line in text.splitlines() if not line.strip().startswith("//")))
        if "broker" not in told.get("listeners", ["broker"]) or told["type"] not in ("request", "response"):
            continue
        if told["validVersions"] == "none" or told["apiKey"] not in APIS:
            assert told["type"] == "response" or told["validVersions"] == "none", told["name"]
            continue
        cls, api = getattr(m, told["name"]), APIS[told["apiKey"]]
        seen.add(cls.__name__)
        assert cls.versions == schema.parse_versions(told["validVersions"])
        flexible = range(0) if told["flexibleVersions"] == "none" else schema.parse_versions(told["flexibleVersions"])
        assert cls.flexible == flexible
        unstable = told.get("latestVersionUnstable", False)
        if told["type"] == "request":
            assert (api.min_version, api.max_version) == (cls.versions[0], cls.versions[-1] - unstable)
    assert len(seen) == 2 * len(APIS)


def test_we_have_all_records_of_the_coordinators(classpath: str) -> None:
    for module in ("group", "transaction", "share"):
        pattern = rf"org/apache/kafka/coordinator/{module}/generated/(\w+(?:Key|Value))\.class"
        found = inside(classpath, f"kafka-{module}-coordinator", pattern)
        assert found
        for name in found:
            assert java_name(getattr(m, name)).split(".")[4] == module
