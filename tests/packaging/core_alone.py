"""What is run against a wheel: the C++ core in every variant that the machine runs, by sets; needs NumPy alone."""

from importlib import util
from pathlib import Path

import numpy as np

# headcodes itself imports its libraries late, and counts.py none but NumPy.
found = util.find_spec("headcodes")
assert found is not None, "the wheel is installed"
assert found.origin is not None
assert "site-packages" in Path(found.origin).parts, "the wheel is tested, not the tree"

from headcodes import _core, unique_counts  # noqa: E402

rng = np.random.default_rng(0)
codes = rng.integers(0, 9, (60, 40), dtype=np.int32)
pos, neg = codes[:30], codes[30:]
unique = [len(set(pos[:, c].tolist()) - set(neg[:, c].tolist())) for c in range(40)]
assert unique_counts(pos, neg).tolist() == unique
for isa in _core.isas():
    pairs, _ = _core.pair_unique_counts(pos, neg, dead=None, layers=None, explained=False, threads=2, isa=isa)
    for i in range(40):
        for j in range(40):
            here = set(zip(pos[:, i].tolist(), pos[:, j].tolist(), strict=True))
            there = set(zip(neg[:, i].tolist(), neg[:, j].tolist(), strict=True))
            assert pairs[i, j] == (len(here - there) if i != j else 0), (isa, i, j)
print("headcodes' core counts right in", ", ".join(_core.isas()))
