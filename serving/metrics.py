"""Metrics for GET /server/metrics: DJL reads them from the worker's output and exposes them to Prometheus.

A line is `[METRICS]name.Count:value|#label:value|time|kind`, with exactly one label (PrometheusAppender.java) and the
kind c(ounter), g(auge) or h(istogram, in Prometheus' default buckets of 5 ms to 10 s).
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence

from serving.batching import Work


def report_batch(batch: Sequence[Work], seconds: float, waiting: int, shape: str) -> None:
    """Write the metrics of a batch: its time, its size, its adapters, and the length of the queue.

    Args:
        batch: The items of the batch.
        seconds: Run time of the graphs in seconds.
        waiting: Number of items in the queue.
        shape: The bucket that the batch was padded to.
    """
    lines = [
        _line("neuron_sum_batch_seconds", seconds, "bucket", shape, "h"),
        _line("neuron_sum_batch_items", len(batch), "bucket", shape, "c"),
        _line("neuron_sum_queue_items", waiting, "queue", "waiting", "g"),
    ]
    lines += [_line("neuron_sum_queue_seconds", work.started - work.arrived, "bucket", shape, "h") for work in batch]
    adapters = Counter(work.adapter or "base" for work in batch)
    lines += [_line("neuron_sum_adapter_items", n, "adapter", name, "c") for name, n in adapters.items()]
    _write(lines)


def report_request(status: int, seconds: float, input_tokens: int, output_tokens: int, truncated: int) -> None:
    """Write the metrics of a request."""
    _write(
        [
            _line("neuron_sum_requests", 1, "status", str(status), "c"),
            _line("neuron_sum_request_seconds", seconds, "status", str(status), "h"),
            _line("neuron_sum_tokens", input_tokens, "direction", "input", "c"),
            _line("neuron_sum_tokens", output_tokens, "direction", "output", "c"),
            _line("neuron_sum_truncated", truncated, "field", "inputs", "c"),
        ]
    )


def _line(name: str, value: float, label: str, label_value: str, kind: str) -> str:
    return f"[METRICS]{name}.Count:{value:.6g}|#{label}:{label_value}|{int(time.time() * 1000)}|{kind}"


def _write(lines: Sequence[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
