"""How trials are run is found out by trying, without a trace, and set back by whoever leaves last."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest
import torch

from fmnist_search.errors import UserError
from fmnist_search.execution.capacity import worker_count
from fmnist_search.recipe.execution import MEMORY_FORMATS, Execution
from fmnist_search.training import autotune, runtime
from fmnist_search.training.autotune import tune
from fmnist_search.training.runtime import resolve_execution, torch_settings
from fmnist_search.workflows.doctor import run_checks

TorchState = tuple[int, bool, bool, bool, bool]


def global_state() -> TorchState:
    return (
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "PROBE_ROUNDS", 2)
    monkeypatch.setattr(autotune, "PROBE_BATCH", 16)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)


# ----------------------------------------------------------------------------------- found out


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_that_is_named_stays(precision: str, execution: Execution) -> None:
    chosen, kept = tune(execution, precision)
    assert kept == precision
    assert chosen.memory_format in MEMORY_FORMATS
    assert chosen.allocator in ("default", "retaining")
    undecided = {"memory_format": execution.memory_format, "allocator": execution.allocator}
    assert dataclasses.replace(chosen, **undecided) == execution  # type: ignore[arg-type]


FLOAT32_RATES = {("float32", "contiguous"): 1.0, ("float32", "channels_last"): 1.0}


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({**FLOAT32_RATES, ("bfloat16", "channels_last"): 0.5}, ("bfloat16", "channels_last")),
        ({**FLOAT32_RATES, ("bfloat16", "channels_last"): 0.95}, ("float32", "channels_last")),
        ({("bfloat16", "contiguous"): 0.95, ("bfloat16", "channels_last"): 1.0}, ("bfloat16", "channels_last")),
        ({("bfloat16", "contiguous"): 0.6, ("bfloat16", "channels_last"): 1.0}, ("bfloat16", "contiguous")),
    ],
)
def test_another_way_than_the_expected_one_has_to_win_by_more_than_noise(
    seconds: dict[tuple[str, str], float],
    chosen: tuple[str, str],
    execution: Execution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autotune, "_step_seconds", lambda execution, ways: seconds)
    precisions = {precision for precision, _ in seconds}
    found, precision = tune(execution, precisions.pop() if len(precisions) == 1 else "auto")
    assert (precision, found.memory_format) == chosen


@pytest.mark.usefixtures("quick")
def test_finding_out_leaves_no_trace(execution: Execution) -> None:
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    before, drawn = global_state(), torch.get_rng_state()
    tune(execution)
    assert global_state() == before
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.usefixtures("quick")
def test_the_allocator_is_left_as_it_usually_is(execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[str] = []
    retain, give_back = runtime._retain_freed_memory, runtime._release_freed_memory
    monkeypatch.setattr(runtime, "_retain_freed_memory", lambda: (set_to.append("retaining"), retain()))
    monkeypatch.setattr(runtime, "_release_freed_memory", lambda: (set_to.append("usual"), give_back()))
    tune(execution, "float32")
    retaining = dataclasses.replace(execution, allocator="retaining")
    with torch_settings(retaining), torch_settings(retaining):
        pass
    assert set_to[-2:] == ["retaining", "usual"]
    assert set_to[::2] == ["retaining"] * (len(set_to) // 2)
    assert set_to[1::2] == ["usual"] * (len(set_to) // 2)


def test_doctor_says_how_many_trials_run_at_a_time(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    (device,) = (check for check in run_checks() if check.subject == "device")
    assert device.ok
    count, _ = worker_count("auto", resolve_execution(threads=1))
    assert f"{count} trials at a time" in device.finding


def test_graphs_are_refused_where_there_is_no_gpu_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        resolve_execution("cpu", engine="graph")
    (line,) = caught.value.lines
    assert "engine" in line
    assert "cpu" in line
    assert "--engine plain" in line


# -------------------------------------------------------------------------------------- settled


def test_torch_is_set_as_the_execution_says_and_set_back() -> None:
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    before = global_state()
    with torch_settings(Execution(threads=1, deterministic=True)):
        assert global_state() == (1, False, True, True, True)
    assert global_state() == before


def test_determinism_that_whoever_calls_asked_for_stays() -> None:
    torch.use_deterministic_algorithms(True)
    with torch_settings(Execution(threads=1)):
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled()


def test_whoever_enters_again_changes_nothing_and_the_last_to_leave_sets_back() -> None:
    torch.set_num_threads(2)
    before = global_state()
    execution = Execution(threads=1, deterministic=True)
    with torch_settings(execution):
        inside = global_state()
        with torch_settings(execution):
            assert global_state() == inside
        assert global_state() == inside
    assert global_state() == before


def test_it_is_set_back_after_an_error() -> None:
    before = global_state()
    with pytest.raises(ZeroDivisionError), torch_settings(Execution(threads=1, deterministic=True)):
        _ = 1 / 0
    assert global_state() == before


def test_threads_come_and_go_in_any_order_and_nobody_is_set_back_before_the_last_has_left() -> None:
    torch.set_num_threads(2)
    before = global_state()
    execution = Execution(threads=1, deterministic=True)
    seen: list[TorchState] = []
    inside, leave = threading.Barrier(5), [threading.Event() for _ in range(4)]

    def trial(place: int) -> None:
        with torch_settings(execution):
            inside.wait(10)
            assert leave[place].wait(10)
            seen.append(global_state())

    threads = [threading.Thread(target=trial, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    for place in (2, 0, 3, 1):
        assert torch.are_deterministic_algorithms_enabled()
        leave[place].set()
        threads[place].join(10)
    assert seen == [(1, False, True, True, True)] * 4
    assert global_state() == before
