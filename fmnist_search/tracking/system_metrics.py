"""System metrics of a run: processor, memory and GPU, measured by MLflow's monitor and sent like all other metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from fmnist_search.tracking import metric_names
from fmnist_search.tracking.run_logger import RunLogger


@contextlib.contextmanager
def log_system_metrics(run: RunLogger) -> Iterator[None]:
    """Log system metrics to the run while the context is open, if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is set."""
    if not run.is_recorded or not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        yield
        return
    monitor = _SystemMetricsLogger(run)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


class _SystemMetricsLogger(SystemMetricsMonitor):
    """MLflow's monitor, which writes its metrics through the run logger instead of the client."""

    def __init__(self, run: RunLogger):
        super().__init__(run.run_key)
        self._run = run

    def monitor(self) -> None:
        while not self._shutdown_event.wait(self.sampling_interval):
            self.collect_metrics()
            self._run.log_metrics(
                {metric_names.system(name): value for name, value in self.aggregate_metrics().items()}, self._step()
            )
            for each in self.monitors:
                each.clear_metrics()

    def _step(self) -> int:
        self._logging_step += 1
        return int(self._logging_step)
