"""The table of APIs."""

from protocol.apis import APIS, PRODUCE_ADVERTISED_MIN, ApiKey


def test_every_key_is_in_the_table_once() -> None:
    assert list(APIS) == sorted(ApiKey)
    assert [api.key for api in APIS.values()] == list(APIS)
    assert len({api.name for api in APIS.values()}) == len(APIS) == 77


def test_names_and_keys_agree() -> None:
    for key, api in APIS.items():
        assert ApiKey(key).name.replace("_", "").lower() == api.name.lower()


def test_versions() -> None:
    for api in APIS.values():
        assert 0 <= api.min_version <= api.max_version
    assert APIS[ApiKey.PRODUCE][2:] == (3, 13, 9, 9)
    assert APIS[ApiKey.FETCH][2:] == (4, 18, 12, 12)
    assert APIS[ApiKey.INIT_PRODUCER_ID].max_version == 5
    assert PRODUCE_ADVERTISED_MIN == 0
