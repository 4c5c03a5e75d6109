"""Tests of `training.runtime`: settings are applied as an execution says, and restored by the last user."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator

import pytest
import torch

from fmnist_search.cgroup import available_cpus
from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.training.autotune import Probe, autotune
from fmnist_search.training.devices import resolve_execution
from fmnist_search.training.runtime import release_freed_memory, retain_freed_memory, torch_settings

TorchSettings = tuple[int, bool, bool, bool, bool]


def current_settings() -> TorchSettings:
    return (
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
    )


@pytest.fixture(autouse=True)
def restored_torch_state() -> Iterator[None]:
    """Start with two threads, and restore what the tests change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------ resolve_execution


def test_defaults_are_those_of_the_machine() -> None:
    found = resolve_execution()
    assert found.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert found.threads == min(torch.get_num_threads(), available_cpus())
    assert resolve_execution("cpu", threads=1) == Execution(device="cpu", threads=1)
    assert resolve_execution("cpu:0", threads=1) == Execution(device="cpu", threads=1)


def test_more_threads_than_cpus_are_refused() -> None:
    with pytest.raises(UserError, match=r"threads: 9999 is more than the [0-9]+ CPUs of this machine; give at most"):
        resolve_execution("cpu", threads=9_999)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")),
        "cuda:99",
        "gpu",
        "meta",
        "",
    ],
)
def test_missing_device_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_execution(device)
    (line,) = caught.value.lines
    assert line.startswith(f"device: {device!r}")
    assert "--device cpu" in line
    assert "\n" not in line


def test_graph_engine_is_refused_on_a_cpu_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        resolve_execution("cpu", engine="graph")
    (line,) = caught.value.lines
    assert "engine" in line
    assert "cpu" in line
    assert "--engine plain" in line


# --------------------------------------------------------------------------------- torch_settings


def test_settings_are_applied_and_restored() -> None:
    torch.backends.cudnn.benchmark = True
    before, generator_state = current_settings(), torch.get_rng_state()
    with torch_settings(Execution(threads=1, deterministic=True)):
        assert current_settings() == (1, False, True, True, True)
    with torch_settings(Execution(threads=0)):
        assert torch.get_num_threads() == 2
    assert current_settings() == before
    assert torch.equal(torch.get_rng_state(), generator_state)


def test_determinism_of_the_caller_stays() -> None:
    torch.use_deterministic_algorithms(True)
    with torch_settings(Execution(threads=1)):
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled()


def test_entering_again_changes_nothing_and_the_last_user_restores() -> None:
    before = current_settings()
    execution = Execution(threads=1, deterministic=True)
    with torch_settings(execution):
        inside = current_settings()
        with torch_settings(execution):
            assert current_settings() == inside
        assert current_settings() == inside
    assert current_settings() == before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_settings_are_restored_after_an_error(error: type[BaseException]) -> None:
    before = current_settings()
    with pytest.raises(error), torch_settings(Execution(threads=1, deterministic=True)):
        raise error
    assert current_settings() == before


def test_threads_leave_in_any_order_and_the_last_one_restores() -> None:
    before = current_settings()
    execution = Execution(threads=1, deterministic=True)
    seen: list[TorchSettings] = []
    all_inside, leave = threading.Barrier(5), [threading.Event() for _ in range(4)]

    def trial(index: int) -> None:
        with torch_settings(execution):
            all_inside.wait(60)
            assert leave[index].wait(60)
            seen.append(current_settings())

    threads = [threading.Thread(target=trial, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    all_inside.wait(60)
    for index in (2, 0, 3, 1):
        assert torch.are_deterministic_algorithms_enabled()
        leave[index].set()
        threads[index].join(60)
    assert seen == [(1, False, True, True, True)] * 4
    assert current_settings() == before


# -------------------------------------------------------------------------------------- allocator


class MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def retains_freed_memory(tensors: int) -> bool:
    """Whether the allocator takes so many large tensors from the heap, which keeps freed memory, and maps none."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallocInfo
    mapped_before = mallinfo().hblkhd
    held = [torch.empty(48 * 2**18) for _ in range(tensors)]  # their memory is never touched
    mapped = mallinfo().hblkhd - mapped_before
    assert len(held) == tensors
    return bool(mapped == 0)


# After retaining, the heap may have room for the few tensors that were there, but not for many.
FEW, MANY = 4, 24

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33"
)


@needs_glibc
def test_memory_is_retained_while_a_retaining_execution_is_active() -> None:
    retaining = Execution(threads=1, allocator="retaining")
    assert not retains_freed_memory(MANY)
    with torch_settings(retaining):
        with torch_settings(retaining):
            assert retains_freed_memory(FEW)
        assert retains_freed_memory(FEW)
    assert not retains_freed_memory(MANY)
    with torch_settings(Execution(threads=1)):
        assert not retains_freed_memory(MANY)


@needs_glibc
def test_allocator_is_restored_after_it_was_measured(execution: Execution) -> None:
    autotune(execution, "float32", Probe(batch_size=16, rounds=2))
    assert not retains_freed_memory(MANY)
    retain_freed_memory()
    assert retains_freed_memory(FEW)
    release_freed_memory()
    assert not retains_freed_memory(MANY)


@pytest.mark.parametrize("device", ["cuda", "mps", "tpu"])
def test_a_device_that_torch_was_built_without_is_refused_in_one_short_line(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        pass
    else:
        pytest.skip("this machine has the device")
    with pytest.raises(
        UserError, match=rf"^device: '{device}' cannot be used here .*use --device cpu or auto$"
    ) as found:
        resolve_execution(device)
    assert len(str(found.value)) < 300
    is_missing = {"cuda": torch.version.cuda is None, "mps": not torch.backends.mps.is_built(), "tpu": False}[device]
    assert (f"is built without {device.upper()}" in str(found.value)) == is_missing


def test_a_container_with_a_quota_gets_no_more_threads_than_its_cpus() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(64)
    try:
        assert resolve_execution("cpu").threads == available_cpus()
    finally:
        torch.set_num_threads(threads)
