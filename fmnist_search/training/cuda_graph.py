"""A training loop captured in a CUDA graph: the host replays the steps and launches nothing else.

With small batches a GPU waits for Python to launch some fifty kernels a step. Here everything that differs between
steps (the images, the learning rate, the weight of the average) is read from tensors on the device, and a step is
captured once and replayed. PyTorch has three traps here: a generator must be registered before the capture, a
device-wide synchronisation in another thread breaks a capture, and the warm-up steps must be undone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fmnist_search.text import first_line
from fmnist_search.training.state import TrainingState

WARMUP_STEPS = 3
"""Steps before a capture, during which libraries choose their kernels and workspaces."""
STEPS_PER_GRAPH = 4
"""Steps of one replay: enough for the host to make fewer than one call a millisecond."""

capture_lock = threading.Lock()
"""Held during a capture and during a device-wide synchronisation, which would break a capture."""


class CaptureError(Exception):
    """Raised if the steps of a training cannot be captured."""


class DeviceLoop:
    """A `TrainingLoop` whose steps read everything that differs between them from tensors on the device.

    It runs on any device and gives the results of the eager loop; `CudaGraphLoop` captures its steps.
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
        weights = [training.averaged.update_weight(step) for step in range(1, len(training.learning_rates) + 1)]
        self._learning_rates = torch.tensor(training.learning_rates, dtype=torch.float32, device=device)
        self._average_weights = torch.tensor(weights, dtype=torch.float32, device=device)
        self._learning_rate = torch.zeros((), dtype=torch.float32, device=device)
        for group in training.optimizer.param_groups:
            group["lr"] = self._learning_rate
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"
        # Torch warns about steps that are not captured; warm-up steps and the last step of an epoch never are.
        training.optimizer._warned_capturable_if_run_uncaptured = True

    def run(self, order: Tensor, first_step: int) -> None:
        """Train once on each training image, in this order (N,) int64; `first_step` counts the steps before."""
        self._order.copy_(order)
        self._step.fill_(first_step)
        self._offset.zero_()
        self._run_full_batches(self._full_batches)
        for size in self.training.batch_sizes[self._full_batches :]:
            self._train_step(order[len(order) - size :])

    def close(self) -> None:
        """Do nothing: the loop holds nothing of its own."""

    def _run_full_batches(self, count: int) -> None:
        for _ in range(count):
            self._train_full_batch()

    def _train_full_batch(self) -> None:
        self._train_step(self._order[self._offset + self._batch_positions])
        self._offset.add_(self._batch_size)

    def _train_step(self, indices: Tensor) -> None:
        """Run one step on the images at `indices`, and count it; rate and average weight are those of its number."""
        training = self.training
        training.backward(indices)
        self._learning_rate.copy_(self._learning_rates[self._step].squeeze(0))
        training.optimizer.step()
        training.averaged.update_with_weight(self._average_weights[self._step].squeeze(0))
        self._step.add_(1)


class CudaGraphLoop(DeviceLoop):
    """A `DeviceLoop` whose full batches are captured in a CUDA graph, on a stream of its own, and replayed."""

    def __init__(self, training: TrainingState):
        """Warm up, restore the training's state, and capture.

        Raises:
            CaptureError: if a step cannot be captured; the training's state is undefined then.
            torch.OutOfMemoryError: if the training does not fit on the device.
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
            raise CaptureError(first_line(error)) from error

    def run(self, order: Tensor, first_step: int) -> None:
        """Train once on each training image, in this order (N,) int64; `first_step` counts the steps before."""
        with self._use_private_stream():
            super().run(order, first_step)

    def close(self) -> None:
        """Wait for the last replay, and free the graph and its memory."""
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
        """Run `action`, then restore weights, statistics, averages, optimizer and generator of the training."""
        training = self.training
        changing = [*training.model.state_dict().values(), *training.averaged.model.state_dict().values()]
        changing += optimizer_tensors(training)  # only a resumed training has any before its first step
        before = [tensor.detach().clone() for tensor in changing]
        known = {id(tensor) for tensor in changing}
        generator_state = training.generator.get_state()
        action()
        with torch.no_grad():
            for tensor, value in zip(changing, before, strict=True):
                tensor.copy_(value)
            for value in optimizer_tensors(training):
                if id(value) not in known:
                    value.zero_()  # the state of an optimizer before its first step
        training.generator.set_state(generator_state)
        for counter in (training.epoch_totals, self._step, self._offset):
            counter.zero_()

    @contextlib.contextmanager
    def _use_private_stream(self) -> Iterator[None]:
        """Launch work on the loop's stream, ordered after earlier and before later work on the current stream."""
        current = torch.cuda.current_stream(self.training.device)
        self._stream.wait_stream(current)
        # All Python threads share one backward thread for each device, where a capture must not run.
        with torch.cuda.stream(self._stream), torch.autograd.set_multithreading_enabled(False):
            yield
        current.wait_stream(self._stream)


def optimizer_tensors(training: TrainingState) -> list[Tensor]:
    """Return the tensors of the optimizer's state, such as momentum; none before the first step."""
    states = training.optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def empty_gpu_cache() -> None:
    """Free unused GPU memory, if a GPU is in use, without breaking a capture in another thread."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with capture_lock:
            torch.cuda.empty_cache()
