"""What is asked of Triton's autotuner, and what is said while it tries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

triton = pytest.importorskip("triton")
configs = pytest.importorskip("headcodes_kernels._configs")

SOME = [configs._config(4, 2, BLOCK_N=16, BLOCK_S=32), configs._config(4, 3, BLOCK_N=16, BLOCK_S=64)]


def test_choices_are_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cache_results" in configs.inspect.signature(triton.autotune).parameters
    asked: dict[str, Any] = {}

    def autotune(
        configs: Any, key: Any, prune_configs_by: Any = None, do_bench: Any = None, cache_results: Any = False
    ):
        asked.update(key=key, do_bench=do_bench, cache_results=cache_results, prune=prune_configs_by)

    monkeypatch.setattr(triton, "autotune", autotune)
    configs.autotune(SOME, ["n_prompt"])
    assert asked["cache_results"] is True
    assert asked["prune"] == {"early_config_prune": configs.prune}


def test_a_triton_that_keeps_nothing_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def autotune(configs: Any, key: Any, prune_configs_by: Any = None, do_bench: Any = None):
        asked.append(configs)

    monkeypatch.setattr(triton, "autotune", autotune)
    with pytest.warns(RuntimeWarning, match="keeps no choice of block sizes"):
        configs.autotune(SOME, ["n_prompt"])
    assert asked == [SOME]


def test_trying_is_announced_once_and_timed_as_triton_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = SimpleNamespace(get_benchmarker=lambda: lambda call, quantiles: [call(), *quantiles])
    monkeypatch.setattr(configs.triton.runtime, "driver", SimpleNamespace(active=times))
    configs._say_once.cache_clear()
    for _ in range(2):
        assert configs._timed(lambda: 7, quantiles=(0.5, 0.2)) == [7, 0.5, 0.2]
    assert capsys.readouterr().err.count("compiling kernels") == 1
