"""Workers that are streams of an actor of Ray, as their pool sees them."""

from __future__ import annotations

import pickle
import queue
import textwrap
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fmnist_search.errors import UserError
from fmnist_search.execution.job import Job, LossCause
from fmnist_search.execution.messages import (
    Decide,
    EpochReported,
    Finished,
    Heartbeat,
    Ready,
    Stop,
    ToPool,
    ToWorker,
    Train,
)
from fmnist_search.execution.ray_cluster import version_difference
from fmnist_search.execution.ray_worker import ActorPlace, PackedImages
from fmnist_search.execution.worker import Worker
from fmnist_search.recipe.groups import Data
from fmnist_search.text import first_line

MAX_REASON = 200
"""Characters of an error of Ray that are shown."""


class QueueInbox:
    """Waits for workers that say themselves when they have received something."""

    def __init__(self) -> None:
        self._ready: queue.SimpleQueue[Worker] = queue.SimpleQueue()

    def add(self, worker: Worker) -> None:
        """Do nothing: a worker calls `put`."""

    def remove(self, worker: Worker) -> None:
        """Do nothing: a pool ignores workers that it has removed."""

    def put(self, worker: Worker) -> None:
        """Let `wait` return a worker; once for each call of its `receive`. Any thread may call it."""
        self._ready.put(worker)

    def wait(self, seconds: float | None) -> list[Worker]:
        """Return the workers that have received something, once there is one or the seconds are over."""
        try:
            ready = [self._ready.get(timeout=seconds)]
        except queue.Empty:
            return []
        while not self._ready.empty():
            ready.append(self._ready.get())
        return ready

    def close(self) -> None:
        """Do nothing."""


class UnusableNode(Exception):
    """Raised for an actor on a node that has other versions."""


class Unresponsive(Exception):
    """Raised for an actor that sends no heartbeats."""


class SharedImages:
    """The images of all trainings as objects of Ray, which each node gets once."""

    def __init__(self) -> None:
        self._references: dict[Data, Any] = {}

    def reference(self, job: Job) -> Any:
        """Return the reference to a job's images.

        Raises:
            UserError: if they do not fit into the object store of this machine.
        """
        import ray
        from ray.exceptions import ObjectStoreFullError, OutOfDiskError

        data = job.recipe.data
        if data not in self._references:
            try:
                self._references[data] = ray.put(PackedImages.pack(job.images))
            except (ObjectStoreFullError, OutOfDiskError) as error:
                raise UserError(
                    "execution.ray: the object store of this machine's node has no room for the images; start the "
                    "node with a larger --object-store-memory"
                ) from error
        return self._references[data]


class Actor:
    """An actor and the workers that are its streams.

    `node_id` is the node that it was requested on, and `place` is known once it has started there. `error` is what has
    ended it.
    """

    def __init__(self, handle: Any, node_id: str, heartbeat_seconds: float):
        self.handle = handle
        self.node_id = node_id
        self.heartbeat_seconds = heartbeat_seconds
        self.requested_at = time.monotonic()
        self.place: ActorPlace | None = None
        self.is_draining = False
        """Whether the node will be taken away, so that no stream may begin another job."""
        self.error: BaseException | None = None
        self.workers: list[RayWorker] = []
        self._awaits_heartbeat = self._is_ended = False
        _on_completion(handle.place.remote(node_id), self._set_place)
        self.await_heartbeat()

    @property
    def where(self) -> str:
        """The host and the node, as far as they are known."""
        return str(self.place or f"node {self.node_id[:8]}")

    @property
    def is_idle(self) -> bool:
        """Whether no stream has a job or is starting."""
        return all(worker.is_ready and worker.job is None for worker in self.workers)

    def end(self) -> None:
        """End the actor without waiting for it; repeating it changes nothing."""
        import ray

        if not self._is_ended:
            ray.kill(self.handle, no_restart=True)
        self._is_ended = True

    def await_heartbeat(self) -> None:
        """Let all streams receive a heartbeat after some seconds, unless they are about to."""
        if not self._awaits_heartbeat:
            self._awaits_heartbeat = True
            _on_completion(self.handle.wait.remote(self.heartbeat_seconds), self._deliver_heartbeat)

    def fail(self, error: BaseException) -> None:
        """Let all streams end with this error."""
        self.error = self.error or error
        for worker in list(self.workers):
            worker.deliver(error)

    def _set_place(self, place: ActorPlace | None, error: BaseException | None) -> None:
        self.place = place
        if place and (difference := version_difference(place.versions)):
            error = UnusableNode(difference)
        if error:
            self.fail(error)

    def _deliver_heartbeat(self, _: object, error: BaseException | None) -> None:
        self._awaits_heartbeat = False
        if error:
            self.fail(error)
            return
        for worker in list(self.workers):
            worker.deliver(None)


class RayWorker(Worker):
    """A stream of an actor.

    A turn begins with the message that starts a training or answers a report. It ends with what the stream sends then,
    and is followed by another turn at once unless the stream waits for the pool now.
    """

    kind = "actor"

    def __init__(self, number: int, actor: Actor, inbox: QueueInbox, images: SharedImages):
        super().__init__(number)
        self.actor = actor
        self._stream = len(actor.workers)
        self._inbox = inbox
        self._images = images
        self._sent_data: set[Data] = set()
        self._reference: Any = None
        self._outgoing: list[ToWorker] = []
        self._replies: deque[bytes | BaseException | None] = deque()
        actor.workers.append(self)
        self._begin_turn()

    @property
    def is_free(self) -> bool:
        """Whether the worker waits for a job and may get one."""
        return super().is_free and not self.actor.is_draining

    @property
    def name(self) -> str:
        """The worker as runs record it, with the host and the node of its actor."""
        return f"{self.number} on {self.actor.where}"

    @property
    def silence_limit(self) -> float | None:
        """Seconds without a message after which the actor counts as lost: two heartbeats are missing."""
        return 3 * self.actor.heartbeat_seconds if self.is_ready else None

    @property
    def loss_cause(self) -> LossCause:
        """Whether the actor ended by itself or the cluster ended it."""
        return describe_loss(self.actor.error)[1]

    def send(self, message: ToWorker) -> None:
        """Begin a turn, unless the message is one that precedes another."""
        if isinstance(message, Stop):
            self.stop()
            return
        self._outgoing.append(message)
        if isinstance(message, Train | Decide):
            self._begin_turn()

    def receive(self) -> list[ToPool]:
        """Return what a turn has brought.

        Raises:
            ConnectionError: if the actor has ended.
        """
        reply = self._replies.popleft()
        if reply is None:
            self.actor.await_heartbeat()
            return [Heartbeat()]
        if isinstance(reply, BaseException):
            self.actor.error = self.actor.error or reply
            raise ConnectionError(f"the actor has ended: {first_line(reply)}") from reply
        messages: list[ToPool] = pickle.loads(reply)
        if not any(isinstance(message, Ready | EpochReported | Finished) for message in messages):
            self._begin_turn()
        return messages

    def deliver(self, reply: bytes | BaseException | None) -> None:
        """Let `receive` return a reply or, for None, a heartbeat, or raise an error. Any thread may call it."""
        self._replies.append(reply)
        self._inbox.put(self)

    def stop(self) -> None:
        """End the actor and with it its other streams."""
        self.actor.end()

    def join(self) -> str:
        """End the actor if something has failed, and return how it ended.

        One that cannot be reached may still train, and another training of the same trial would run beside it.
        """
        if self.actor.error:
            self.actor.end()
        return describe_loss(self.actor.error)[0].format(where=self.actor.where)

    def _provide_images(self, job: Job) -> None:
        data = job.recipe.data
        if data not in self._sent_data:
            self._reference = self._images.reference(job)
            self._sent_data.add(data)

    def _begin_turn(self) -> None:
        payload, self._outgoing = pickle.dumps(self._outgoing, protocol=5), []
        reference, self._reference = self._reference, None
        _on_completion(self.actor.handle.turn.remote(self._stream, payload, reference), self._end_turn)

    def _end_turn(self, reply: bytes | None, error: BaseException | None) -> None:
        self.deliver(error or reply or b"")


def describe_loss(error: BaseException | None) -> tuple[str, LossCause]:
    """Return how an actor ended that failed with an error of Ray, with `{where}` for its place, and the cause."""
    from ray import exceptions

    match error:
        case None:
            return "on {where} was ended", LossCause.INFRASTRUCTURE
        case Unresponsive():
            return f"on {{where}} {error}", LossCause.WORKER
        case UnusableNode():
            return f"on {{where}} was ended, which has {error}", LossCause.WORKER
        case exceptions.OutOfMemoryError():
            return "on {where} was killed because memory ran out", LossCause.WORKER
        case exceptions.ActorUnavailableError():
            return "on {where} could not be reached any more", LossCause.INFRASTRUCTURE
        case exceptions.RayActorError() if error.preempted:
            return "on {where} was lost with its node, which was preempted", LossCause.INFRASTRUCTURE
        case exceptions.ActorUnschedulableError():
            return "on {where} was lost with its node", LossCause.INFRASTRUCTURE
        case exceptions.RayActorError() if _is_loss_of_node(str(error)):
            return "on {where} was lost with its node", LossCause.INFRASTRUCTURE
        case exceptions.RayActorError() | exceptions.WorkerCrashedError() if "unexpectedly exits" in str(error):
            return "on {where} was killed or crashed, possibly because memory ran out", LossCause.WORKER
        case exceptions.RayTaskError() | exceptions.RayActorError():
            return f"on {{where}} ended ({_last_line(error)})", LossCause.WORKER
        case _:
            return f"on {{where}} was lost ({type(error).__name__}: {_last_line(error)})", LossCause.INFRASTRUCTURE


def _is_loss_of_node(text: str) -> bool:
    return "node has died" in text or "the actor's node was" in text


def _last_line(error: BaseException) -> str:
    """Return the line of an error of Ray that says what happened, which follows a traceback or a list of ids."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return textwrap.shorten(lines[-1], MAX_REASON, placeholder=" ...").replace("{", "(").replace("}", ")")


def _on_completion(reference: Any, handle: Callable[[Any, BaseException | None], None]) -> None:
    """Call `handle` with the result or the error of a call, in a thread of Ray."""

    def done(future: Any) -> None:
        error = future.exception()
        handle(None if error else future.result(), error)

    reference.future().add_done_callback(done)
