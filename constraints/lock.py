"""Turn pip's report of what it would install into a constraints file: name==version, a line each (`make lock`)."""

from __future__ import annotations

import json
import sys

HEADER = """\
# Every direct and indirect dependency, tests and linters included, on Python 3.11, Linux x86-64, without a GPU.
# Written by `make lock`; used by make setup, demo, test, lint and .ci/run there, and nowhere else."""


def main() -> None:
    """Read the report from standard input, write the constraints to standard output."""
    packages = (entry["metadata"] for entry in json.load(sys.stdin)["install"])
    # A local label such as +cpu would bind to one build; any build of that release will do.
    lines = {f"{about['name']}=={about['version'].partition('+')[0]}" for about in packages}
    print(HEADER, *sorted((line for line in lines if not line.startswith("headcodes=")), key=str.lower), sep="\n")


if __name__ == "__main__":
    main()
