"""What a scan asks of a Ray cluster for each of its workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headcodes.scan.cells import Job
from headcodes.scan.plan import Plan
from headcodes.scan.ray_engine import fit, needs_of

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Cells of two models, of 1 and 5 MiB."""
    for name, size in (("small", MIB), ("large", 5 * MIB)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(size))
    models = tuple((str(tmp_path / name), None) for name in ("small", "large", "small"))
    plan = Plan(models=models, seeds=(0, 1), device="cpu", dtype="float32", threads=2)
    return [(str(number), cell) for number, cell in enumerate(plan.cells())]


def node(**resources: float) -> dict[str, float]:
    return {"CPU": 8.0, "memory": 64.0 * GIB} | resources


def test_a_worker_gets_the_memory_of_the_largest_model(jobs: list[Job]) -> None:
    assert needs_of(jobs, 1.0, [node()]) == {"CPU": 2.0, "memory": GIB + 5 * MIB}
    assert needs_of(jobs[:2], 1.0, [node()])["memory"] == GIB + MIB


@pytest.mark.parametrize(
    ("resources", "room"),
    [({}, 4), ({"memory": 3.0 * GIB}, 2), ({"memory": 1.0 * GIB}, 0), ({"CPU": 1.0}, 0), ({"CPU": 7.0}, 3)],
)
def test_a_machine_has_room_for_what_its_scarcest_resource_allows(
    jobs: list[Job], resources: dict[str, float], room: int
) -> None:
    assert fit(node(**resources), needs_of(jobs, 1.0, [node()])) == room


def test_a_model_larger_than_every_machine_gets_the_largest_to_itself(jobs: list[Job]) -> None:
    # The third has the most memory, but no room for two threads.
    nodes = [node(memory=1.0 * MIB), node(memory=1.0 * GIB), node(memory=2.0 * GIB, CPU=1.0)]
    needs = needs_of(jobs, 1.0, nodes)
    assert needs["memory"] == GIB
    assert [fit(each, needs) for each in nodes] == [0, 1, 0]


def test_a_share_of_a_gpu_is_asked_for_on_cuda_only(jobs: list[Job]) -> None:
    on_gpu = [(identity, replace(cell, device="cuda")) for identity, cell in jobs]
    needs = needs_of(on_gpu, 0.5, [node(GPU=2.0), node()])
    assert needs["GPU"] == 0.5
    assert [fit(each, needs) for each in (node(GPU=2.0), node())] == [4, 0]
    assert "GPU" not in needs_of(jobs, 0.5, [node(GPU=2.0)])


def test_without_room_no_memory_is_asked_for(jobs: list[Job]) -> None:
    assert needs_of(jobs, 1.0, [node(CPU=1.0)])["memory"] == 0
