"""The far end of a worker: trains what it is sent, reports each epoch, and does what it is answered.

A process of its own runs `python -m fmnist_search.execution.worker_main`, a thread calls `worker_loop`; both look
alike to the pool that sends the recipes. Nothing but the core is imported here, so that a process is there in seconds.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import MutableMapping
from multiprocessing.connection import Connection

import torch

from fmnist_search.data.images import Images
from fmnist_search.execution.channel import READY, STOP, Channel
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Data, Recipe
from fmnist_search.results.training import Decision, EpochReport
from fmnist_search.training.trial import run_trial


def worker_loop(channel: Channel, images_by_data: MutableMapping[Data, Images]) -> None:
    """Train recipe after recipe until told to stop, or until nobody is there.

    What a recipe needs comes before it: how it is run, and its images unless the gallery holds them.
    """

    def observe(report: EpochReport) -> Decision:
        channel.send(report)
        answer = channel.receive()
        if not isinstance(answer, Decision):  # told to stop: nobody waits for the rest
            raise EOFError
        return answer

    importlib.import_module("torch._dynamo")  # the first optimizer would load it, while a trial waits
    execution = Execution()
    try:
        channel.send(READY)
        while (message := channel.receive()) != STOP:
            match message:
                case Execution():
                    execution = message
                    use_private_stream(torch.device(execution.device))
                case Recipe():
                    channel.send(run_trial(message, images_by_data[message.data], execution, observe))
                case (data, images):
                    images_by_data[data] = images
    except (EOFError, OSError):
        return


def use_private_stream(device: torch.device) -> None:
    """Threads on one stream would wait for each other."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def main() -> None:
    """A worker process, given the number of its end of the connection."""
    # Whoever presses Ctrl-C asks the study, which lets running epochs end; when it is gone, so is the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker_loop(Channel(Connection(int(sys.argv[1]))), {})


if __name__ == "__main__":
    main()
