"""Generated files are what their generators write."""

from pathlib import Path

from broker import reference
from broker.dispatch import HANDLERS
from protocol.schema import stubs

README = Path(__file__).resolve().parents[2] / "README.md"


def test_messages_stub_is_fresh() -> None:
    assert stubs.STUBS.read_text(encoding="utf-8") == stubs.generate(), "run python -m protocol.schema.stubs"


def test_readme_tables_are_fresh() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == reference.rewrite(text), "run python -m broker.reference README.md"


def test_every_served_api_names_a_test_that_exists() -> None:
    for key, entry in HANDLERS.items():
        assert (README.parent / entry.test).is_file(), f"{key.name}: {entry.test} does not exist"
