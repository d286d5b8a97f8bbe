"""The start-up probe: does this store keep the promises that everything else rests on?"""

from collections.abc import Callable

from storage.object_store import ObjectStore


async def probe(store: ObjectStore, token: Callable[[int], bytes]) -> None:
    """Raises `StoreError` naming the promise that `store` does not keep. `token(n)` gives n random bytes."""
