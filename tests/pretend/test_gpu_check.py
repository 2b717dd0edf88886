"""``make gpu-check`` as far as a pretended GPU carries it, and what it says without one."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tests.pretend.device import pretended


@pytest.fixture
def check() -> Iterator[Any]:
    """The program, at sizes of seconds."""
    spec = importlib.util.spec_from_file_location("gpu_check", Path(__file__).parents[2] / "bench/gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with (
        mock.patch.object(module, "KERNEL_PROMPTS", {"folded": 20, "unfolded": 4}),
        mock.patch.object(module, "KERNEL_SHAPE", (2, 8, 24, 20)),
        mock.patch.object(module, "GPT2_XL", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
        mock.patch.object(module, "N_PAIRS", 8),
    ):
        yield module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so_in_one_line(check: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(tmp_path / "report.json")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "no CUDA device" in said.err
    assert not list(tmp_path.iterdir())


def test_every_step_runs_and_the_report_says_how_it_went(
    check: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    steps = dict(check.STEPS)
    with pretended():
        check.STEPS.clear()
        # The interpreter takes tensors of the CPU; a planted model is opened by its name, which takes a real device.
        check.STEPS["kernels"] = lambda _device: steps["kernels"]("cpu")
        check.STEPS["training"] = lambda _device: steps["training"]("pretend")
        check.STEPS["planted"] = lambda _device: steps["planted"]("cpu")
        check.STEPS["gpt2-xl"] = lambda _device: steps["gpt2-xl"]("pretend:1")
        file = tmp_path / "report.json"
        with (
            mock.patch.object(torch.cuda, "is_available", return_value=True),
            mock.patch.object(check, "about", return_value={}),
            mock.patch("headcodes.models.load.refuse_kind"),
        ):
            status = check.main([str(file)])
    report = json.loads(file.read_text())
    assert status == 0, report
    assert set(report["steps"]) == set(steps)
    assert report["steps"]["training"]["device"] == "pretend:1"
    assert report["steps"]["gpt2-xl"]["warm_s"]["capture"] > 0
    capsys.readouterr()


def test_a_step_that_fails_is_told_and_the_others_run(
    check: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_device: str) -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    with (
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(check, "about", return_value={}),
        mock.patch.dict(check.STEPS, {"kernels": broken, "training": lambda _: {}, "planted": lambda _: {}}),
    ):
        del check.STEPS["gpt2-xl"]
        assert check.main([str(tmp_path / "report.json")]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["steps"]["kernels"]["error"] == "RuntimeError: no such kernel"
    assert report["steps"]["training"]["well"]
    capsys.readouterr()
