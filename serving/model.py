"""The handler that DJL Serving runs in its Python worker; option.async_mode must be true.

The worker imports this module once, before it takes requests. The model is loaded during the import and not in the
empty request that follows: a model that fails in that request leaves DJL's async mode in a deadlock
(PyProcess.stopPythonProcess waits for a connection whose thread waits for it), while a worker that exits during the
import makes the load and the server fail. Only a model that loads for longer than DJL waits for an import continues in
that request. service.py handles the requests.
"""

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillLoading
from pathlib import Path
from typing import TYPE_CHECKING

from djl_python import Input, Output

from neuron_sum.errors import NeuronSumError
from neuron_sum.platform import memory
from serving import properties
from serving.schema import EVENTS, ServiceError, wants_events
from serving.worker import Worker

if TYPE_CHECKING:
    from serving.service import Service

IMPORT_S = 90.0
"""Maximum seconds of the import; DJL waits 120 s (PyProcess.startPythonProcess), then model_loading_timeout for the
empty request."""


def _start() -> "Future[Service]":
    """Load the model from the folder that the worker was started in."""
    worker = Worker(Path.cwd(), sys.argv[sys.argv.index("--sock-name") + 1])
    if not worker.is_wanted():
        sys.exit("the model was unloaded")
    memory.keep_freed()
    loaded: Future[Service] = Future()
    threading.Thread(target=_load, args=(worker, loaded), name="load", daemon=True).start()
    try:
        loaded.result(IMPORT_S)
    except StillLoading:
        loaded.add_done_callback(lambda late: os._exit(_log_failure(late.exception())) if late.exception() else None)
    except NeuronSumError as error:
        sys.exit(_log_failure(error))
    return loaded


def _load(worker: Worker, loaded: "Future[Service]") -> None:
    try:
        from neuron_sum.runtimes.native import preload

        preload()
        from serving.service import Service  # takes seconds, which an unwanted worker does not spend

        limits = properties.read_limits(properties.read(Path(properties.FILE)))
        loaded.set_result(Service.load(Path(properties.ARTIFACT), limits, worker.adapters))
    except BaseException as error:  # noqa: BLE001  the future raises it again where its result is read
        loaded.set_exception(error)


def _log_failure(error: BaseException | None) -> int:
    """Log why the model is not loaded, and return the exit code."""
    if isinstance(error, NeuronSumError):
        logging.error("the model is not loaded: %s; %s", error.message, error.hint)
        return error.exit_code
    logging.error("the model is not loaded", exc_info=error)
    return 1


_loaded = _start()


async def handle(inputs: Input) -> Output | AsyncIterator[Output] | None:
    """Answer a request; the empty request waits until the model is loaded."""
    if inputs.is_empty():
        await asyncio.wrap_future(_loaded)
        return None
    body, kind = bytes(inputs.get_content().get("data") or b""), inputs.get_property("content-type")
    accept, adapter = inputs.get_property("accept"), inputs.get_property("X-Amzn-SageMaker-Adapter-Identifier")
    request_id = inputs.get_property("requestId") or ""
    if wants_events(accept):
        return _events(body, kind, adapter, request_id)
    try:
        answer = await _loaded.result().answer(body, kind, accept, adapter, request_id)
    except ServiceError as error:
        return _refusal(error)
    return _output({"data": answer.body, "last": True}, {"Content-Type": answer.content_type})


async def _events(body: bytes, kind: str | None, adapter: str | None, request_id: str) -> AsyncIterator[Output]:
    """The answer to a request as server-sent events."""
    try:
        async for event, is_last in _loaded.result().stream(body, kind, adapter, request_id):
            yield _output({"data": event, "last": is_last}, {"Content-Type": EVENTS, "Cache-Control": "no-store"})
    except ServiceError as error:
        yield _refusal(error)


async def register_adapter(inputs: Input) -> Output:
    """Handle POST /models/M/adapters?name=…&src=…."""
    return await _change_adapter(inputs, known=False)


async def update_adapter(inputs: Input) -> Output:
    """Handle POST /models/M/adapters/A/update?src=…."""
    return await _change_adapter(inputs, known=True)


async def list_adapters(inputs: Input) -> Output:
    """Handle GET /models/M/adapters and GET /models/M/adapters/A, for which the plugin adds those in the artifact."""
    try:
        registered = await _loaded.result().adapters.list()
    except ServiceError as error:
        return _refusal(error)
    return _output({"data": json.dumps(registered), "last": True}, {})


async def unregister_adapter(inputs: Input) -> Output:
    """Handle DELETE /models/M/adapters/A."""
    try:
        await _loaded.result().adapters.unregister(inputs.get_property("name") or "")
    except ServiceError as error:
        return _refusal(error)
    return _output({"data": "unregistered", "last": True}, {})


async def _change_adapter(inputs: Input, *, known: bool) -> Output:
    try:
        await _loaded.result().adapters.register(
            inputs.get_property("name") or "", inputs.get_property("src") or "", known=known
        )
    except ServiceError as error:
        return _refusal(error)
    return _output({"data": "registered", "last": True}, {})


def _refusal(error: ServiceError) -> Output:
    """An error in the form of DJL's async mode: a code and one text, from which the plugin restores the body."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return _output({"data": "", "last": True, "code": error.code, "error": json.dumps(error.body())}, headers)


def _output(content: dict[str, object], headers: dict[str, str]) -> Output:
    """An output of async mode: a map of texts in djl_python's binary form, and properties that become headers."""
    output = Output()
    for name, value in headers.items():
        output.add_property(name, value)
    output.add(Output.binary_encode(content), key="data")
    return output
