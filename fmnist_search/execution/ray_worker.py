"""The actor of Ray in which trainings run.

Each node imports this module, which neither needs Ray nor loads torch before the first training.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import queue
import socket
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmnist_search.execution.messages import Configure, Finished, ToPool, ToWorker, Train
from fmnist_search.execution.ray_probe import versions
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.results.training import TrialState

if TYPE_CHECKING:
    from fmnist_search.data.images import Images


@dataclass(frozen=True)
class PackedImages:
    """Images as arrays, which Ray shares between the processes of a node, and all else that describes them."""

    arrays: dict[str, Any]
    fields: dict[str, Any]

    @classmethod
    def pack(cls, images: Images) -> PackedImages:
        """Return images in this form; the arrays share memory with images on the CPU."""
        arrays = {
            f"{name}.{part}": getattr(getattr(images, name), part).cpu().numpy()
            for name in ("train", "validation")
            for part in ("pixels", "labels")
        }
        fields = {field.name: getattr(images, field.name) for field in dataclasses.fields(images)}
        return cls(arrays, {name: value for name, value in fields.items() if name not in ("train", "validation")})

    def unpack(self, device: str) -> Images:
        """Return the images on a device; on the CPU they share memory with the arrays, which nobody may write to."""
        import torch

        from fmnist_search.data.images import Images, LabelledImages

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        train = LabelledImages(tensors["train.pixels"], tensors["train.labels"])
        validation = LabelledImages(tensors["validation.pixels"], tensors["validation.labels"])
        return Images(train, validation, **self.fields).to(device)


@dataclass(frozen=True)
class ActorPlace:
    """Where an actor runs."""

    host: str
    node_id: str
    process_id: int
    versions: Mapping[str, str | None]

    def __str__(self) -> str:
        return f"{self.host} (node {self.node_id[:8]})"


class TrainingActor:
    """A process that trains; its streams are threads with one training each.

    A call is one turn of a conversation between a pool and a stream. Calls wait for each other in no order, so each
    carries everything that its messages need.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}
        self._packed: dict[Data, PackedImages] = {}
        self._images: dict[Data, Images] = {}
        self._devices: dict[Data, str] = {}

    def place(self, node_id: str) -> ActorPlace:
        """Return where the actor runs, before it has imported anything that takes long."""
        return ActorPlace(socket.gethostname(), node_id, os.getpid(), versions())

    def wait(self, seconds: float) -> None:
        """Return after some seconds: a sign that the process runs; the call fails if it ends, also without a job."""
        threading.Event().wait(seconds)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what a function returns in this process."""
        return function(*args)

    def turn(self, stream: int, payload: bytes, images: PackedImages | None = None) -> bytes:
        """Pass messages on to a stream, and return those that it has for the pool once there is one.

        Args:
            stream: The number of the stream, which starts with its first turn.
            payload: A pickled list of messages.
            images: Those of the training that the messages start, unless the stream has had them.
        """
        messages: list[ToWorker] = pickle.loads(payload)
        answers = self._stream(stream, messages, images).exchange(messages)
        return pickle.dumps([_without_unneeded_weights(message) for message in answers], protocol=5)

    def _stream(self, number: int, messages: Sequence[ToWorker], packed: PackedImages | None) -> _Stream:
        with self._lock:
            stream = self._streams.get(number)
            if stream is None:
                stream = self._streams[number] = _Stream(self._images)
            for message in messages:
                match message:
                    case Configure():
                        stream.execution = message.execution
                    case Train():
                        self._provide_images(message.data, packed, stream.execution.device)
            return stream

    def _provide_images(self, data: Data, packed: PackedImages | None, device: str) -> None:
        if packed:
            self._packed.setdefault(data, packed)
        if self._devices.get(data) != device:
            self._images[data] = self._packed[data].unpack(device)
            self._devices[data] = device


class _Stream:
    """A thread that trains, and the channel to it within this process."""

    def __init__(self, images: dict[Data, Images]) -> None:
        self.execution = Execution()
        self._images = images
        self._to_worker: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self._to_pool: queue.SimpleQueue[ToPool | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def exchange(self, messages: Sequence[ToWorker]) -> list[ToPool]:
        """Pass messages on, and return what the thread has sent, as soon as there is something."""
        for message in messages:
            self._to_worker.put(message)
        answers = [self._to_pool.get()]
        while not self._to_pool.empty():
            answers.append(self._to_pool.get())
        if None in answers:
            self._to_pool.put(None)  # for the next turn
            raise RuntimeError(f"the thread that trains has ended: {self._error!r}") from self._error
        return [answer for answer in answers if answer is not None]

    def send(self, message: ToPool) -> None:
        """Send a message to the pool."""
        self._to_pool.put(message)

    def receive(self) -> ToWorker:
        """Return the pool's next message."""
        return self._to_worker.get()

    def close(self) -> None:
        """Let the turns to come fail."""
        self._to_pool.put(None)

    def _run(self) -> None:
        try:
            from fmnist_search.execution.worker_main import worker_loop
            from fmnist_search.third_party_messages import silence_libraries
            from fmnist_search.training.compiler import defer_compiler_import

            silence_libraries()
            defer_compiler_import()
            worker_loop(self, self._images)
        except BaseException as error:
            self._error = error
            self.close()


def _without_unneeded_weights(message: ToPool) -> ToPool:
    """Return a message without weights that nobody uses: those of a training that did not complete."""
    if isinstance(message, Finished) and message.result.state is not TrialState.COMPLETED:
        return Finished(dataclasses.replace(message.result, weights=None, last_weights=None))
    return message
