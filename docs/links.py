"""Ask the web for every address in the documents: `make links`.

Status 1 where one is gone (404 and the like), 0 else; where there is no connection it says so, and status 3. An
address that refuses programs (401, 403, 429) is counted as there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
OFFLINE = 3


def addresses(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield every http address of the documents and notebooks, without its fragment, and the file it is in."""
    for path in [*root.glob("*.md"), *(root / "docs").glob("*.md"), *(root / "docs").glob("notebooks/*.ipynb")]:
        for found in re.findall(r"https?://[^\s)\]>\"'`|\\]+", path.read_text(encoding="utf-8")):
            yield found.partition("#")[0].rstrip(".,;:"), path


def ask(client: httpx.Client, address: str) -> int | None:
    """Return an address's status, None where nobody answers."""
    try:
        status = client.head(address).status_code
        return client.get(address).status_code if status in (405, 501) else status
    except httpx.HTTPError:
        return None


def main(root: Path = ROOT) -> int:
    """Print what is wrong, and return the status to leave with."""
    places: dict[str, list[Path]] = {}
    for address, path in addresses(root):
        places.setdefault(address, []).append(path)
    with httpx.Client(follow_redirects=True, timeout=20) as client, ThreadPoolExecutor(8) as pool:
        found = dict(zip(places, pool.map(lambda address: ask(client, address), places), strict=True))
    if places and not any(found.values()):
        print(f"none of {len(places)} addresses answers: there is no connection here, and nothing was checked")
        return OFFLINE
    bad = [a for a, status in found.items() if status is None or (status >= 400 and status not in (401, 403, 429))]
    for address in bad:
        where = ", ".join(sorted({path.name for path in places[address]}))
        print(f"{found[address] or 'no answer'}  {address}  ({where})")
    print(f"{len(places)} addresses, {len(bad)} of them gone")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
