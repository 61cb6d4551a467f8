"""The handler that DJL Serving runs in its Python worker; option.async_mode must be true.

The worker imports this module once, before it takes requests. The model is loaded right then and not in the empty
request that follows: a model that fails there leaves DJL's async mode in a deadlock (PyProcess.stopPythonProcess waits
for a connection whose thread waits for it), while a worker that ends here makes the load fail, and the server with it.
What happens to a request stands in service.py.
"""

import hashlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from djl_python import Input, Output

from neuron_sum.errors import NeuronSumError
from serving import properties
from serving.schema import ServiceError
from serving.service import Service

UNLOADED_S = 10.0
"""How long the server's mark that a model was unloaded counts; DJL starts the worker again within a second."""


def _start() -> Service:
    """Loads the model of the folder that the worker was started in."""
    _end_if_unloaded()
    try:
        limits = properties.read_limits(properties.read(Path(properties.FILE)))
        return Service.load(Path(properties.ARTIFACT), limits, Path(tempfile.gettempdir()))
    except NeuronSumError as error:
        logging.error("the model is not loaded: %s; %s", error.message, error.hint)
        sys.exit(error.exit_code)


def _end_if_unloaded() -> None:
    """Ends a worker that the server starts for a model it has just unloaded (Unloads.java)."""
    folder = hashlib.sha256(str(Path.cwd().resolve()).encode()).hexdigest()[:16]
    mark = Path(tempfile.gettempdir()) / f"neuron-sum-unloaded-{folder}"
    if mark.exists() and time.time() - mark.stat().st_mtime < UNLOADED_S:
        mark.unlink(missing_ok=True)
        sys.exit("the model was unloaded")


_service = _start()


async def handle(inputs: Input) -> Output | None:
    """A request; the empty one asks whether the model is loaded."""
    if inputs.is_empty():
        return None
    try:
        answer = await _service.answer(
            bytes(inputs.get_content().get("data") or b""),
            inputs.get_property("content-type"),
            inputs.get_property("accept"),
            inputs.get_property("X-Amzn-SageMaker-Adapter-Identifier"),
            inputs.get_property("requestId") or "",
        )
    except ServiceError as error:
        return _refusal(error)
    return _output({"data": answer.body, "last": True}, {"Content-Type": answer.content_type})


async def register_adapter(inputs: Input) -> Output:
    """POST /models/M/adapters?name=…&src=… comes here."""
    return await _change_adapter(inputs, known=False)


async def update_adapter(inputs: Input) -> Output:
    """POST /models/M/adapters/A/update?src=… comes here."""
    return await _change_adapter(inputs, known=True)


async def unregister_adapter(inputs: Input) -> Output:
    """DELETE /models/M/adapters/A comes here."""
    try:
        await _service.unregister(inputs.get_property("name") or "")
    except ServiceError as error:
        return _refusal(error)
    return _output({"data": "unregistered", "last": True}, {})


async def _change_adapter(inputs: Input, *, known: bool) -> Output:
    try:
        await _service.register(inputs.get_property("name") or "", inputs.get_property("src") or "", known=known)
    except ServiceError as error:
        return _refusal(error)
    return _output({"data": "registered", "last": True}, {})


def _refusal(error: ServiceError) -> Output:
    """An error as DJL carries it in async mode: a code, and one text, which our plugin makes the body again."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return _output({"data": "", "last": True, "code": error.code, "error": json.dumps(error.body())}, headers)


def _output(content: dict[str, object], headers: dict[str, str]) -> Output:
    """Of async mode: a map of texts in djl_python's binary form, and properties that become headers."""
    output = Output()
    for name, value in headers.items():
        output.add_property(name, value)
    output.add(Output.binary_encode(content), key="data")
    return output
