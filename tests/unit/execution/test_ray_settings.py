"""The settings of workers on a Ray cluster, and what Ray is asked for."""

from __future__ import annotations

import subprocess
import sys

from fmnist_search.execution.capacity import WORKER_MEMORY_BYTES
from fmnist_search.execution.ray_settings import RayResources, RaySettings


def test_a_worker_reserves_a_cpu_and_its_memory_by_default() -> None:
    assert RaySettings().actor_options() == {"num_cpus": 1, "num_gpus": 0, "memory": WORKER_MEMORY_BYTES}


def test_a_part_of_a_gpu_is_asked_of_ray() -> None:
    resources = RayResources(cpu=2, gpu=0.25, memory=0)
    settings = RaySettings(resources=resources)
    assert settings.actor_options() == {"num_cpus": 2, "num_gpus": 0.25}
    assert str(resources) == "2 CPU, 0.25 GPU"
    assert str(RayResources(memory=4 * 2**30)) == "1 CPU, 4.0 GiB of memory"


def test_settings_need_neither_ray_nor_torch() -> None:
    script = "import sys; sys.modules.update(ray=None, torch=None); import fmnist_search.execution.ray_settings"
    subprocess.run([sys.executable, "-c", script], check=True)
