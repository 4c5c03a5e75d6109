"""A training's steps captured in a CUDA graph: the host replays them and launches nothing else.

At small batches a GPU waits for Python to launch some fifty kernels a step. Here one step, with all that differs
between steps read from tensors on the device (which images, which learning rate, how much of the average), is
recorded once and replayed. The traps that this code walks around are PyTorch's: a generator must be registered before
the capture, a capture in one thread is broken by a device-wide wait in another, warm-up steps must be undone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fmnist_search.training.state import TrainingState

WARMUP_STEPS = 3
"""Steps before a capture, in which libraries choose their kernels and workspaces."""
STEPS_PER_GRAPH = 4
"""Steps that one replay runs: the host then makes fewer than a call a millisecond."""

capture_lock = threading.Lock()
"""Held by whoever captures, or waits for the whole device."""


class CaptureError(Exception):
    """A training whose steps cannot be captured."""


class DeviceLoop:
    """The steps of a training with everything that differs between them read from tensors on its device.

    Run as they stand, on any device, they give the plain loop's result.
    """

    def __init__(self, training: TrainingState):
        self.training = training
        device, sizes = training.device, training.batch_sizes
        self._batch_size = sizes[0]
        self._full_batches = sum(size == self._batch_size for size in sizes)
        self._order = torch.zeros(len(training.images.train), dtype=torch.int64, device=device)
        self._batch_positions = torch.arange(self._batch_size, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._offset = torch.zeros(1, dtype=torch.int64, device=device)
        shares = [training.averaged.update_weight(step) for step in range(1, len(training.learning_rates) + 1)]
        self._learning_rates = torch.tensor(training.learning_rates, dtype=torch.float32, device=device)
        self._average_weights = torch.tensor(shares, dtype=torch.float32, device=device)
        self._learning_rate = torch.zeros((), dtype=torch.float32, device=device)
        for group in training.optimizer.param_groups:
            group["lr"] = self._learning_rate
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"
        # Torch warns of steps that are not captured; those of the warm-up, and the last of an epoch, are meant.
        training.optimizer._warned_capturable_if_run_uncaptured = True

    def run(self, order: Tensor, first_step: int) -> None:
        """One pass over the training images in this order; `first_step` counts the steps before it."""
        self._order.copy_(order)
        self._step.fill_(first_step)
        self._offset.zero_()
        self._run_full_batches(self._full_batches)
        for size in self.training.batch_sizes[self._full_batches :]:
            self._train_step(order[len(order) - size :])

    def close(self) -> None:
        """Nothing is held."""

    def _run_full_batches(self, count: int) -> None:
        for _ in range(count):
            self._train_full_batch()

    def _train_full_batch(self) -> None:
        self._train_step(self._order[self._offset + self._batch_positions])
        self._offset.add_(self._batch_size)

    def _train_step(self, indices: Tensor) -> None:
        """One step on these images; it reads the rate and the share of its number, and counts it."""
        training = self.training
        training.backward(indices)
        self._learning_rate.copy_(self._learning_rates[self._step].squeeze(0))
        training.optimizer.step()
        training.averaged.update_with_weight(self._average_weights[self._step].squeeze(0))
        self._step.add_(1)


class CudaGraphLoop(DeviceLoop):
    """The same, recorded once in a CUDA graph on a stream of the training's own, and replayed."""

    def __init__(self, training: TrainingState):
        """Warm up, put everything back as it was, and capture.

        Raises:
            CaptureError: something in a step cannot be captured; the training is spoilt then.
            torch.OutOfMemoryError: it does not fit on the device.
        """
        super().__init__(training)
        self._stream = torch.cuda.Stream(training.device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps_per_graph = min(STEPS_PER_GRAPH, self._full_batches)
        try:
            with self._use_private_stream():
                self._restoring(lambda: super(CudaGraphLoop, self)._run_full_batches(WARMUP_STEPS))
                self._graph = self._capture()
        except torch.OutOfMemoryError:
            self.close()
            raise
        except RuntimeError as error:
            self.close()
            raise CaptureError(next(iter(str(error).splitlines()), type(error).__name__)) from error

    def run(self, order: Tensor, first_step: int) -> None:
        """One pass over the training images in this order; `first_step` counts the steps before it."""
        with self._use_private_stream():
            super().run(order, first_step)

    def close(self) -> None:
        """Give back the graph and what it holds, once its last replay is through."""
        self._stream.synchronize()
        if self._graph is not None:
            with capture_lock:
                self._graph.reset()
            self._graph = None

    def _run_full_batches(self, count: int) -> None:
        assert self._graph is not None
        replays, rest = divmod(count, self._steps_per_graph)
        for _ in range(replays):
            self._graph.replay()
        super()._run_full_batches(rest)

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.training.generator)
        self.training.optimizer.zero_grad(set_to_none=True)
        with capture_lock:
            torch.cuda.synchronize(self.training.device)
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for _ in range(self._steps_per_graph):
                    self._train_full_batch()
            finally:
                graph.capture_end()
        return graph

    def _restoring(self, action: Callable[[], object]) -> None:
        """Do something to the training and take it back: weights, statistics, averages, optimizer, generator."""
        training = self.training
        changing = [*training.model.state_dict().values(), *training.averaged.model.state_dict().values()]
        changing += optimizer_tensors(training)  # by a training that goes on; a fresh one remembers nothing yet
        before = [tensor.detach().clone() for tensor in changing]
        known = {id(tensor) for tensor in changing}
        drawn = training.generator.get_state()
        action()
        with torch.no_grad():
            for tensor, value in zip(changing, before, strict=True):
                tensor.copy_(value)
            for value in optimizer_tensors(training):
                if id(value) not in known:
                    value.zero_()  # what an optimizer remembers before its first step
        training.generator.set_state(drawn)
        for counter in (training.epoch_totals, self._step, self._offset):
            counter.zero_()

    @contextlib.contextmanager
    def _use_private_stream(self) -> Iterator[None]:
        """Everything launched here waits for what was launched outside, and the other way round."""
        outside = torch.cuda.current_stream(self.training.device)
        self._stream.wait_stream(outside)
        # One backward thread a device is shared by all of Python's: a capture must not run there.
        with torch.cuda.stream(self._stream), torch.autograd.set_multithreading_enabled(False):
            yield
        outside.wait_stream(self._stream)


def optimizer_tensors(training: TrainingState) -> list[Tensor]:
    """What the optimizer has learned of its steps so far."""
    states = training.optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def empty_gpu_cache() -> None:
    """Give unused memory of the GPU back, if one is in use, without breaking a capture of another thread."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with capture_lock:
            torch.cuda.empty_cache()
