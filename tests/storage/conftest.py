"""The S3 servers, one of each per test run, and the environment in which AWS clients find credentials."""

from collections.abc import Iterator

import pytest

from tests.support import s3_servers
from tests.support.s3_servers import S3Server


@pytest.fixture(scope="session")
def aws_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_servers.ENVIRONMENT.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def moto_server(aws_environment: None) -> Iterator[S3Server]:
    with s3_servers.moto() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture(scope="session")
def versitygw_server(aws_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_servers.versitygw(tmp_path_factory.mktemp("versitygw")) as server:
        server.make_bucket("bucket")
        yield server
