"""The worker's side: trains the recipes that it receives and reports each epoch.

A worker process runs `python -m fmnist_search.execution.worker_main`, a thread calls `worker_loop`. This module imports
neither MLflow nor Optuna, so that a process is ready in seconds.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch

from fmnist_search.data.images import Images
from fmnist_search.execution.channel import Channel, WorkerChannel
from fmnist_search.execution.messages import (
    AddImages,
    CheckpointTaken,
    Configure,
    Decide,
    EpochReported,
    Finished,
    Heartbeat,
    Ready,
    Started,
    Stop,
    Train,
)
from fmnist_search.parent_process import end_with_parent
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.results.training import Decision, EpochReport
from fmnist_search.third_party_messages import silence_libraries
from fmnist_search.training.async_checkpoint import AsyncCheckpointer
from fmnist_search.training.checkpoint import Checkpoint
from fmnist_search.training.compiler import defer_compiler_import
from fmnist_search.training.loop import EpochResult
from fmnist_search.training.trial import run_trial


class _Stopped(Exception):
    """Ends a trial for whose result nobody waits."""


class _Trainer:
    """Trains one recipe after the other, and sends the pool their reports, checkpoints and results."""

    def __init__(self, channel: WorkerChannel):
        self._channel = channel
        self._checkpointer = AsyncCheckpointer(lambda content: channel.send(CheckpointTaken(content)))

    def train(self, message: Train, images: Images, execution: Execution) -> None:
        """Train a recipe and send its result after everything else that concerns it."""
        reporter = _Reporter(self._channel, message, images, execution, self._checkpointer)
        callback = None if message.checkpoint_seconds is None else reporter
        with self._checkpointer.training():
            result = run_trial(
                message.recipe,
                images,
                execution,
                reporter.decide,
                resume_from=message.checkpoint,
                training_callback=callback,
            )
        self._channel.send(Finished(result))


class _Reporter:
    """Reports the epochs of one training, and takes the checkpoint of an epoch after its report was answered."""

    def __init__(
        self,
        channel: WorkerChannel,
        training: Train,
        images: Images,
        execution: Execution,
        checkpointer: AsyncCheckpointer,
    ):
        self._channel = channel
        self._training = training
        self._images = images
        self._execution = execution
        self._checkpointer = checkpointer
        self._state: Mapping[str, Any] | None = None

    def on_epoch_end(self, _: EpochResult, state: dict[str, Any]) -> None:
        """Keep the state until the decision."""
        self._state = state

    def decide(self, report: EpochReport) -> Decision:
        """Return the pool's decision."""
        self._channel.send(EpochReported(report))
        answer = self._channel.receive()
        if not isinstance(answer, Decide):
            raise _Stopped
        self._take_checkpoint(answer.decision)
        return answer.decision

    def _take_checkpoint(self, decision: Decision) -> None:
        interval, state = self._training.checkpoint_seconds, self._state
        if interval is None or state is None or decision is Decision.PRUNE:
            return
        digests = [self._images.digest, self._images.split_digest]
        checkpoint = Checkpoint(self._training.recipe, vars(self._execution), digests, state)
        if decision is Decision.CONTINUE:
            self._checkpointer.take(checkpoint, interval)
        else:
            self._checkpointer.take_last(checkpoint)


def worker_loop(channel: WorkerChannel, images_by_data: MutableMapping[Data, Images]) -> None:
    """Train recipe after recipe until a `Stop` arrives or the pool closes the channel, then close it here.

    The execution and the images of a recipe arrive before it, unless `images_by_data` holds the images already.
    """

    # The first optimizer would import it while a trial waits. In a worker process `main` has put it off.
    importlib.import_module("torch._dynamo")
    execution, trainer = Execution(), _Trainer(channel)
    try:
        channel.send(Ready())
        while not isinstance(message := channel.receive(), Stop):
            match message:
                case Configure():
                    execution = message.execution
                    use_private_stream(torch.device(execution.device))
                case AddImages(data, images):
                    images_by_data[data] = images.to(execution.device)
                case Train():
                    channel.send(Started())
                    trainer.train(message, images_by_data[message.data], execution)
                case Decide():
                    raise AssertionError("a decision without an epoch report")
    except (EOFError, OSError, _Stopped):
        return
    finally:
        channel.close()


def use_private_stream(device: torch.device) -> None:
    """Give the calling thread a CUDA stream of its own: threads that share a stream wait for each other."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def send_heartbeats(channel: WorkerChannel, interval: float) -> None:
    """Send a heartbeat every `interval` seconds; exit the process when the pool has closed the channel.

    Without a pool nobody reads the result, so the running epoch is not waited for.
    """
    while True:
        time.sleep(interval)
        try:
            channel.send(Heartbeat())
        except OSError:
            os._exit(0)


def main() -> None:
    """Run a worker process; the arguments are the socket's file descriptor and the seconds between heartbeats."""
    # The study decides how running epochs end when these signals reach all its processes, as Ctrl-C, a service manager
    # and a closed terminal send them. When the study ends, the channel closes.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)  # also if this process is stopped then; elsewhere the next heartbeat ends it
    silence_libraries()
    defer_compiler_import()
    channel: WorkerChannel = Channel(socket.socket(fileno=int(sys.argv[1])))
    threading.Thread(target=send_heartbeats, args=(channel, float(sys.argv[2])), daemon=True).start()
    worker_loop(channel, {})


if __name__ == "__main__":
    main()
