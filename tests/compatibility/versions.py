"""Which foreign software the compatibility tests run, in one place.

The Python client libraries are pinned in `requirements-test.lock`; kcat is whatever Debian's package `kcat` gives.
"""

PROTOCOL = "4.3.0"
"""The Apache Kafka whose protocol we speak: its classes judge our codecs."""

KAFKA = "4.3.1"
"""The Apache Kafka whose clients and tools are run."""

OLDER_KAFKA = "3.9.2"
"""An older line that is still in wide use."""

SLF4J = "1.7.36"
"""The logger of Kafka's tools, so that what clients complain about is seen."""
