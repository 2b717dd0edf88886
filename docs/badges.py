"""Put "open in Colab" on every notebook, and the line that installs headcodes there: `make badges REPO=owner/name`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

NOTEBOOKS = Path(__file__).parent / "notebooks"
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"


def put(path: Path, repo: str) -> None:
    """Put the badge, or another address into the one that is there, below a notebook's title."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    first = notebook["cells"][0]
    lines = [line for line in "".join(first["source"]).split("\n") if not line.startswith(BADGE)]
    target = f"https://colab.research.google.com/github/{repo}/blob/main/docs/notebooks/{path.name}"
    note = "(there, run `%pip install headcodes` first)"
    text = "\n".join([lines[0], "", f"{BADGE}({target}) {note}", "", *lines[1:]])
    first["source"] = re.sub(r"\n{3,}", "\n\n", text).splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(repo: str) -> int:
    """Put badges on all notebooks; status 2 where the name is none of a repository."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        print(f"the repository must be owner/name; got {repo!r}. make badges REPO=owner/name", file=sys.stderr)
        return 2
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        put(path, repo)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or [""]))
