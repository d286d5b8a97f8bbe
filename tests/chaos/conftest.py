"""The S3 servers of the storage tests, for whole brokers."""

from tests.storage.conftest import aws_environment, moto_server, versitygw_server

__all__ = ["aws_environment", "moto_server", "versitygw_server"]
