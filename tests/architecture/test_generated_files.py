"""Generated files are what their generators write."""

from protocol.schema import stubs


def test_messages_stub_is_fresh() -> None:
    assert stubs.STUBS.read_text(encoding="utf-8") == stubs.generate(), "run python -m protocol.schema.stubs"
