"""A cluster of real processes under real clients while everything fails: nothing acknowledged is lost, doubled or
reordered, groups go on where they were, and how long it takes is written down beside the benchmarks' results."""

import json
from pathlib import Path
from time import monotonic  # noqa: TID251

import pytest

from tests.chaos.cluster import Variant, chaos_cluster
from tests.chaos.test_outage import needs_versitygw
from tests.support.s3_servers import S3Server

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.json"
VARIANTS = [
    Variant("three machines, object engine", session_ms=3_000),
    Variant("one machine, PostgreSQL", one_machine=True, postgres=True),
    Variant("WAL in the bucket, object engine", wal="objects"),
    Variant("WAL in the bucket, PostgreSQL", wal="objects", postgres=True),
]


def record(variant: Variant, figures: dict[str, object]) -> None:
    """Print what was measured and keep it; other variants stay as they were."""
    print(f"{variant.name}: {json.dumps(figures, indent=1)}")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[variant.name] = figures
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


@pytest.mark.chaos
@needs_versitygw
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name.replace(", ", "-").replace(" ", "-"))
def test_everything_fails(versitygw_server: S3Server, tmp_path: Path, variant: Variant) -> None:
    began = monotonic()
    with chaos_cluster(tmp_path, versitygw_server, variant) as cluster:
        cluster.run()
        figures = cluster.finish()
    figures["seconds"] = round(monotonic() - began)
    record(variant, figures)
