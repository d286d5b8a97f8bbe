"""What the value of `tidelog.metadata` may be. Pure, and without a word of what it holds in an error."""

from urllib.parse import parse_qsl, urlsplit

SCHEMES = ("postgresql", "postgres")


def check_uri(uri: str) -> str:
    """The URI; `ValueError` if it cannot be one of ours, without a word of what it holds."""
    parts = urlsplit(uri)
    query = options(uri)
    if parts.scheme not in SCHEMES:
        raise ValueError("is either empty or postgresql://user@host:port/database?...")
    if parts.password is not None or {"password", "sslpassword"} & query.keys():
        raise ValueError(
            "holds a password, and settings are shown: put it into PGPASSWORD or a passfile (passfile=PATH)"
        )
    if not parts.path.strip("/") and "dbname" not in query and "database" not in query:
        raise ValueError("names no database: postgresql://user@host:port/database")
    return uri


def options(uri: str) -> dict[str, str]:
    """What stands behind the question mark."""
    return dict(parse_qsl(urlsplit(uri).query))


def address(uri: str) -> str:
    """Host and port, for people."""
    return urlsplit(uri).netloc.rpartition("@")[2] or "its default address"
