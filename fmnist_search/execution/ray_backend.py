"""Workers that are actors on a Ray cluster, as many as the cluster has room for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from typing import Any, Literal

from fmnist_search.errors import UserError
from fmnist_search.execution.job import Job, LossCause
from fmnist_search.execution.pool import Pool, Result
from fmnist_search.execution.ray_actor import (
    Actor,
    QueueInbox,
    RayWorker,
    SharedImages,
    Unresponsive,
    UnusableNode,
    describe_loss,
)
from fmnist_search.execution.ray_cluster import ClusterInfo, connect, disconnect
from fmnist_search.execution.ray_room import MAX_FAILED_STARTS, ActorCounts, NodeState, Room, cluster_nodes
from fmnist_search.execution.ray_settings import RaySettings
from fmnist_search.execution.ray_worker import TrainingActor
from fmnist_search.execution.worker import Worker
from fmnist_search.recipe.execution import Execution

HEARTBEAT_SECONDS = 15.0
"""How often an actor says that its process runs; one that misses two heartbeats is ended."""
POLL_SECONDS = 3.0
"""How often the cluster is asked where it has room."""
PLACEMENT_SECONDS = 60.0
"""How long an actor may wait for its node before it is given up: another program has taken its place."""
IDLE_SECONDS = 60.0
STRANDED_SECONDS = 60.0
"""How long a job may wait for a worker while there is none at all."""
MAX_STREAMS = 64


class RayBackend(Pool):
    """Runs jobs in actors, each on one node with resources of its own and with `streams` jobs at a time.

    Their number follows the cluster: a node that joins gets actors, and an actor that is lost is replaced where there
    is room. With a number as `size`, at most so many jobs run at a time. An actor is only requested where it fits, and
    none while there are no jobs for it; one that has no job for long is released. Actors end when this process does.
    `on_message` is told that the backend waits for room.

    Raises:
        UserError: if there is no cluster that can run the actors; see `ray_cluster.connect`.
    """

    def __init__(
        self,
        execution: Execution,
        size: int | Literal["auto"],
        settings: RaySettings,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        on_message: Callable[[str], None] = lambda _: None,
    ):
        if size != "auto" and size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self._limit = None if size == "auto" else size
        self._settings = settings
        self._heartbeat_seconds = heartbeat_seconds
        self._streams = 1 if settings.streams == "auto" else settings.streams
        self.idle_seconds = idle_seconds
        """How long an actor may have no job, when there is none, before its place is left to others."""
        self._on_message = on_message
        self._waits_for_room = False
        self._has_jobs = True
        self._stranded_since: float | None = None
        self._actors: list[Actor] = []
        self._images = SharedImages()
        self._room = Room(settings)
        self._problem = ""
        self._queue = QueueInbox()
        self._cluster = connect(settings)
        import ray  # which `connect` has found to be installed

        self._actor_class = ray.remote(TrainingActor)
        self._actor_options = _actor_options(settings)
        super().__init__(execution, self._queue, check_interval=poll_seconds)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._images = SharedImages()
        disconnect(self._cluster)

    @property
    def cluster(self) -> ClusterInfo:
        """The cluster as it was when this process has connected to it."""
        return self._cluster

    @property
    def streams(self) -> int:
        """How many jobs an actor runs at a time."""
        return self._streams

    @streams.setter
    def streams(self, count: int) -> None:
        self._streams = count
        for actor in self._actors:
            self._add_streams(actor)

    def wait_until_ready(self) -> None:
        """Wait until there is a worker that can start a job.

        Raises:
            UserError: if workers cannot be started.
        """
        while len(self._workers) == self._workers.starting_count:
            self._receive()

    def run_on_worker(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return what a function returns in the process of an actor that runs no job; wait until there is one.

        Raises:
            UserError: if workers cannot be started, or the function raises it.
        """
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        while True:
            self.wait_until_ready()
            worker = next(worker for worker in self._workers if isinstance(worker, RayWorker) and worker.is_ready)
            try:
                result: Result = ray.get(worker.actor.handle.call.remote(function, *arguments))
            except RayTaskError as error:
                raise error.cause or error from None
            except RayActorError as error:
                worker.actor.fail(error)
                self._receive()
            else:
                return result

    def run(self, next_job: Callable[[], Job | None]) -> None:
        """Run jobs until `next_job` returns None and all jobs have ended; see `Pool.run`."""

        def ask() -> Job | None:
            job = next_job()
            self._has_jobs = job is not None
            return job

        self._has_jobs, self._stranded_since = True, None
        super().run(ask)

    # ----------------------------------------------------------------------------------------------- what varies

    def _fill_places(self) -> None:
        self._request_actors(cluster_nodes())

    def _request_actors(self, nodes: Sequence[NodeState]) -> None:
        """Request actors wherever they fit, if there may be jobs for them.

        Raises:
            UserError: if there are no actors, and none can be started on any node.
        """
        if self._is_stopped or not (self._has_jobs or self._unreceived or len(self._workers) == 0):
            return
        missing = None if self._limit is None else -(-(self._limit - len(self._workers)) // self._streams)
        if missing is not None and missing <= 0:
            return
        for node_id in self._room.choose(nodes, self._count_actors(), missing):
            self._start_actor(node_id)
        if self._problem and not self._actors and not self._room.has_usable(nodes):
            raise UserError(self._problem)

    def _check(self) -> bool:
        """Follow the cluster; an event after which jobs are looked for, if an actor was released or there is none."""
        count, nodes = len(self._actors), cluster_nodes()
        self._note_draining({node.id for node in nodes if node.is_draining})
        for actor in list(self._actors):
            self._check_actor(actor)
        is_event = len(self._actors) < count
        is_event |= super()._check()
        self._request_actors(nodes)
        self._report_waiting()
        return is_event or len(self._workers) == 0

    def _report_waiting(self) -> None:
        """Say once that there is no actor, until there is one again."""
        if not self._actors and not self._waits_for_room:
            self._on_message(f"the cluster has no room for a worker of {self._settings.resources}; waits for it")
        self._waits_for_room = not self._actors

    def _end_unresponsive(self, worker: Worker) -> None:
        assert isinstance(worker, RayWorker)
        worker.actor.fail(Unresponsive(f"did not respond for {worker.silence_limit:g} seconds and was ended"))
        self._replace(worker)

    def _has_ended(self, next_job: Callable[[], Job | None]) -> bool:
        """Return whether all jobs have ended; without any worker, ask whether there are more, and do not wait long."""
        if len(self._workers):
            self._stranded_since = None
            return super()._has_ended(next_job)
        now = time.monotonic()
        if not self._unreceived:
            if (job := next_job()) is None:
                return True
            self._unreceived.append(job)
            self._stranded_since = now
        elif now - (self._stranded_since or now) >= STRANDED_SECONDS:
            job = self._unreceived.popleft()
            job.on_worker_lost("the cluster has had no room for a worker", LossCause.INFRASTRUCTURE)
        self._stranded_since = self._stranded_since or now
        return False

    # ------------------------------------------------------------------------------------------------ the actors

    def _start_actor(self, node_id: str) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        handle = self._actor_class.options(**self._actor_options, scheduling_strategy=strategy).remote()
        actor = Actor(handle, node_id, self._heartbeat_seconds)
        self._actors.append(actor)
        self._add_streams(actor)

    def _add_streams(self, actor: Actor) -> None:
        while len(actor.workers) < self._streams and (self._limit is None or len(self._workers) < self._limit):
            self._add(RayWorker(self._workers.lowest_free_number, actor, self._queue, self._images))

    def _remove(self, worker: Worker) -> None:
        assert isinstance(worker, RayWorker)
        super()._remove(worker)
        actor = worker.actor
        actor.workers.remove(worker)
        if actor.error and actor in self._actors:
            self._actors.remove(actor)
            self._note_loss(actor, actor.error, was_ready=worker.is_ready)

    def _note_loss(self, actor: Actor, error: BaseException, *, was_ready: bool) -> None:
        """Take note of what the loss of an actor says about its node."""
        reason, cause = describe_loss(error)
        if isinstance(error, UnusableNode):
            self._room.leave_out(actor.node_id)
            self._problem = f"execution.ray: node {actor.where} has {error}"
        elif cause is LossCause.INFRASTRUCTURE:
            self._room.suspect(actor.node_id)
        elif not self._room.note_start(actor.node_id, succeeded=was_ready):
            self._problem = (
                f"execution.ray: a worker actor {reason.format(where=actor.where)} before it was ready, "
                f"{MAX_FAILED_STARTS} times in a row; see the logs of Ray on that node"
            )

    def _check_actor(self, actor: Actor) -> None:
        now = time.monotonic()
        if actor.place is None:
            if now - actor.requested_at > PLACEMENT_SECONDS:
                self._release(actor)
        elif actor.is_idle:
            idle_since = max(worker.free_since for worker in actor.workers)
            if actor.is_draining or (not self._has_jobs and now - idle_since > self.idle_seconds):
                self._release(actor)

    def _note_draining(self, node_ids: Set[str]) -> None:
        for actor in self._actors:
            if actor.node_id in node_ids and not actor.is_draining:
                actor.is_draining = True
                for worker in actor.workers:
                    self._workers.update(worker)

    def _release(self, actor: Actor) -> None:
        """End an actor without jobs."""
        self._actors.remove(actor)
        actor.end()
        for worker in list(actor.workers):
            self._remove(worker)

    def _count_actors(self) -> ActorCounts:
        counts = ActorCounts()
        for actor in self._actors:
            (counts.placed if actor.place else counts.unplaced)[actor.node_id] += 1
        return counts


def _actor_options(settings: RaySettings) -> dict[str, Any]:
    """Return the options of an actor; only the study tries a trial again."""
    streams = MAX_STREAMS if settings.streams == "auto" else settings.streams
    return {**settings.actor_options(), "max_restarts": 0, "max_task_retries": 0, "max_concurrency": streams + 3}
