"""Settings: parsing, bounds, contradictions, precedence, what is refused and what is only reported."""

import pytest

from broker.settings import FIELDS, SettingError, Settings, key_of
from broker.settings_checks import build
from broker.settings_sources import key_of_variable, load, parse_overrides, parse_properties


def test_defaults_are_valid_and_every_field_is_documented() -> None:
    settings = build({})
    assert settings == Settings()
    assert settings.storage_uri == "file:./tidelog-data/bucket"
    assert settings.wal_dir == "./tidelog-data/wal"
    assert settings.retention_ms == 168 * 3_600_000
    for key, field in FIELDS.items():
        assert field.metadata["doc"].endswith("."), key
        assert key_of(field.name) == key


def test_flag_over_environment_over_file_over_default() -> None:
    file_text = "num.partitions=2\nlog.retention.hours = 1\nnode.id:7\n"
    environment = {"KAFKA_NUM_PARTITIONS": "3", "KAFKA_NODE_ID": "8", "PATH": "/bin"}
    settings = load(file_text, environment=environment, overrides={"num.partitions": "4"}).settings
    assert (settings.num_partitions, settings.node_id, settings.log_retention_hours) == (4, 8, 1)


def test_environment_names_follow_the_apache_image() -> None:
    assert key_of_variable("KAFKA_TIDELOG_WAL_DIR") == "tidelog.wal.dir"
    assert key_of_variable("KAFKA_A__B___C") == "a_b-c"


def test_properties_comments_continuations_and_both_separators() -> None:
    text = "# comment\n! too\na=1\nb : two words\nc=x,\\\n   y\n\n"
    assert parse_properties(text, "f") == {"a": "1", "b": "two words", "c": "x,y"}
    with pytest.raises(SettingError, match="f line 1"):
        parse_properties("nonsense", "f")
    with pytest.raises(SettingError, match="f: the last line ends with a backslash"):
        parse_properties("a=1\nb=x,\\\n", "f")


def test_unknown_keys_name_the_nearest_setting() -> None:
    with pytest.raises(SettingError, match=r"unknown setting tidelog\.wal\.dirr; did you mean tidelog\.wal\.dir"):
        load("tidelog.wal.dirr=/x")
    with pytest.raises(SettingError, match=r"KAFKA_TIDELOG_WALL"):
        load(environment={"KAFKA_TIDELOG_WALL": "x"})
    with pytest.raises(SettingError, match="--override"):
        load(overrides={"no.such.key": "1"})


def test_kafka_keys_without_effect_are_listed_and_foreign_environment_is_a_warning() -> None:
    loaded = load(
        "num.io.threads=8\nlog.dirs=/tmp/x\ncontroller.quorum.voters=1@a:1",
        environment={"KAFKA_PORT": "tcp://10.0.0.1:9092"},
    )
    assert loaded.without_effect == ["controller.quorum.voters", "log.dirs", "num.io.threads"]
    assert loaded.warnings == ["environment variable KAFKA_PORT: not a setting, ignored"]


def test_what_is_always_on_says_why() -> None:
    key = "transaction.partition.verification.enable"
    assert load(f"{key}=true").without_effect == [key]
    loaded = load(f"{key}=false")
    assert loaded.without_effect == [] and f"{key} stays true: leaders always ask" in loaded.warnings[0]


def test_broker_id_is_node_id() -> None:
    assert load("broker.id=5").settings.node_id == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"node.id": "-1"}, "node.id=-1: write 0 or more"),
        ({"node.id": "one"}, "write a whole number"),
        ({"node.id": "1_0"}, "write a whole number"),
        ({"delete.topic.enable": "yes"}, "write true or false"),
        ({"compression.type": "brotli"}, "write one of producer"),
        ({"listeners": "localhost:9092"}, "is not NAME://host:port"),
        ({"listeners": "PLAINTEXT://h:99999"}, "is not NAME://host:port"),
        ({"listeners": "SSL://h:1"}, "listener.security.protocol.map"),
        ({"listeners": "PLAINTEXT://a:1,PLAINTEXT://b:2"}, "used twice"),
        ({"listeners": ""}, "at least one"),
        ({"listener.security.protocol.map": "X:SASL_SSL"}, "not supported"),
        ({"advertised.listeners": "PLAINTEXT://0.0.0.0:9092"}, "cannot be connected to"),
        (
            {
                "listener.security.protocol.map": "A:PLAINTEXT,B:PLAINTEXT",
                "listeners": "A://:1",
                "advertised.listeners": "B://h:1",
            },
            "is not one of listeners",
        ),
        ({"log.cleanup.policy": "shred"}, "write delete, compact or both"),
        ({"queued.max.request.bytes": "-1"}, "write 1048576 or more"),
        ({"log.cleaner.min.cleanable.ratio": "nan"}, "write 0 or more"),
        ({"advertised.listeners": "PLAINTEXT://broker..local:9092"}, "'broker..local' is no name of a host"),
        ({"message.max.bytes": str(64 << 20)}, "does not fit a WAL file"),
        ({"tidelog.wal.bytes.max": str(64 << 20)}, "at least three files"),
        ({"tidelog.tail.bytes.max": str(2 << 20)}, "at most half"),
        ({"tidelog.controller.lease.ms": "9000"}, "must not be longer"),
        ({"group.min.session.timeout.ms": "9000000"}, "is above"),
        ({"tidelog.http.listener": "somewhere"}, "write host:port"),
    ],
)
def test_bad_values_say_what_to_write(values: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError, match=message.replace(".", r"\.")):
        build(values)


def test_listeners_with_ipv6_and_any_interface() -> None:
    settings = build({"listeners": "PLAINTEXT://[::1]:9092"})
    assert settings.bound_listeners[0].host == "::1"
    assert str(settings.bound_listeners[0]) == "PLAINTEXT://[::1]:9092"
    assert build({"listeners": "PLAINTEXT://:0"}).bound_listeners[0].host == ""


def test_overrides_need_an_equals_sign() -> None:
    assert parse_overrides(["a=b=c"]) == {"a": "b=c"}
    with pytest.raises(SettingError):
        parse_overrides(["a"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"log.retention.ms": "5", "log.retention.minutes": "1"}, 5),
        ({"log.retention.minutes": "2"}, 120_000),
        ({"log.retention.minutes": "-1"}, -1),
        ({"log.retention.hours": "-1"}, -1),
    ],
)
def test_retention_precedence(values: dict[str, str], expected: int) -> None:
    assert build(values).retention_ms == expected
