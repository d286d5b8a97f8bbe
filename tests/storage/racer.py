"""One of several processes that race on a store: `python -m tests.storage.racer URI NUMBER`.

Prints `ready`, waits for a line, creates the keys race/0 to race/19 (printing each it won) and counts to 20.
"""

import asyncio
import secrets
import sys

from storage.object_store import PreconditionFailed, open_store


async def main(uri: str, number: str) -> None:
    store = open_store(uri, token=secrets.token_bytes)
    await store.get("counter")  # everything is imported and connected
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(20):
        try:
            await store.put_if_absent(f"race/{n}", number.encode())
        except PreconditionFailed:
            continue
        print(f"race/{n}", number)
    for turn in range(20):
        while True:
            stored = await store.get("counter")
            value = int(stored.data.partition(b"|")[0])
            try:
                await store.put_if_match("counter", f"{value + 1}|{number} {turn}".encode(), stored.etag)
                break
            except PreconditionFailed:
                continue
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
