"""The controller's numbers, for Prometheus. Labels have few values: routes, states, statuses; never an id."""

from __future__ import annotations

import asyncio
from collections import Counter as Count
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .domain.states import WorkerState
from .registry import Registry

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class _Workers(Collector):
    """Counted when asked for, so that nothing has to keep them right."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        workers = self._registry.list()
        states = Count(worker.state for worker in workers)
        family = GaugeMetricFamily("jobcluster_workers", "Workers by state.", labels=["state"])
        for state in WorkerState:
            if state is not WorkerState.GONE:
                family.add_metric([state], states[state])
        yield family
        running = sum(self._registry.running(worker.worker_id) for worker in workers)
        yield GaugeMetricFamily("jobcluster_tasks", "Tasks on workers that have not ended.", value=running)


class _Work(Collector):
    """What is under way; at rest it goes back to where it was, or something leaks."""

    def __init__(self, open_outputs: Callable[[], int]) -> None:
        self._open_outputs = open_outputs

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "jobcluster_output_streams", "Outputs being fetched from workers.", value=self._open_outputs()
        )
        try:
            tasks = len(asyncio.all_tasks())
        except RuntimeError:  # not asked from within the event loop
            return
        yield GaugeMetricFamily("jobcluster_event_loop_tasks", "Tasks of the event loop.", value=tasks)


class Metrics:
    """One registry per controller, so that two can live in one process (tests)."""

    def __init__(self, registry: Registry | None = None, open_outputs: Callable[[], int] = lambda: 0) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "jobcluster_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "jobcluster_http_request_seconds",
            "Time to answer a request that is neither a stream nor a wait.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.streams = Gauge("jobcluster_http_streams", "Streams being read now.", registry=self._registry)
        self.cuts = Counter(
            "jobcluster_http_streams_cut", "Streams that broke off before their end.", registry=self._registry
        )
        self._children: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        ProcessCollector(registry=self._registry)
        self._registry.register(_Work(open_outputs))
        if registry is not None:
            self._registry.register(_Workers(registry))

    def request(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Counts one answer. ``route`` is a template of the table, ``seconds`` None for streams and waits."""
        child = self._children.get((method, route, status))
        if child is None:
            child = self._requests.labels(method, route, str(status))
            self._children[method, route, status] = child
        child.inc()
        if seconds is None:
            return
        histogram = self._histograms.get(route)
        if histogram is None:
            histogram = self._histograms[route] = self._seconds.labels(route)
        histogram.observe(seconds)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self._registry)
