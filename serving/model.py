"""The handler that DJL Serving runs in its Python worker; option.async_mode must be true.

The worker imports this file several times before it asks anything, so nothing is loaded before the first, empty
request. What happens to a request stands in service.py.
"""

import hashlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from djl_python import Input, Output

    from serving.schema import ServiceError
    from serving.service import Service

UNLOADED_S = 10.0
"""How long the server's mark that a model was unloaded counts; DJL starts the worker again within a second."""

_service: "Service | None" = None


def _end_if_unloaded() -> None:
    """Ends a worker that the server starts for a model it has just unloaded (Unloads.java), before it loads anything."""
    folder = hashlib.sha256(str(Path.cwd().resolve()).encode()).hexdigest()[:16]
    mark = Path(tempfile.gettempdir()) / f"neuron-sum-unloaded-{folder}"
    if mark.exists() and time.time() - mark.stat().st_mtime < UNLOADED_S:
        mark.unlink(missing_ok=True)
        sys.exit("the model was unloaded")


_end_if_unloaded()


async def handle(inputs: "Input") -> "Output | None":
    """A request; an empty one loads the model."""
    global _service  # noqa: PLW0603  the worker calls functions of a module
    from serving.schema import ServiceError

    if _service is None:
        _service = _load(inputs)
        return None
    try:
        answer = await _service.answer(
            _body(inputs),
            inputs.get_property("content-type"),
            inputs.get_property("accept"),
            inputs.get_property("X-Amzn-SageMaker-Adapter-Identifier"),
            inputs.get_property("requestId") or "",
        )
    except ServiceError as error:
        return _refusal(error)
    return _output({"data": answer.body, "last": True}, {"Content-Type": answer.content_type})


async def register_adapter(inputs: "Input") -> "Output":
    """POST /models/M/adapters?name=…&src=…"""
    return await _change_adapter(inputs, known=False)


async def update_adapter(inputs: "Input") -> "Output":
    """POST /models/M/adapters/A/update?src=…"""
    return await _change_adapter(inputs, known=True)


async def unregister_adapter(inputs: "Input") -> "Output":
    """DELETE /models/M/adapters/A"""
    from serving.schema import ServiceError

    assert _service is not None
    try:
        await _service.unregister(inputs.get_property("name") or "")
    except ServiceError as error:
        return _refusal(error)
    return _output({"data": "unregistered", "last": True}, {})


async def _change_adapter(inputs: "Input", *, known: bool) -> "Output":
    from serving.schema import ServiceError

    assert _service is not None
    try:
        await _service.register(inputs.get_property("name") or "", inputs.get_property("src") or "", known=known)
    except ServiceError as error:
        return _refusal(error)
    return _output({"data": "registered", "last": True}, {})


def _load(inputs: "Input") -> "Service":
    """Reads the limits from serving.properties, whose `option.` keys come with the first request."""
    from neuron_sum.errors import NeuronSumError
    from neuron_sum.recipe import ServeConfig
    from serving.properties import ARTIFACT, read_limits
    from serving.service import Service

    properties = inputs.get_properties()
    try:
        limits: ServeConfig = read_limits(properties)
        return Service.load(Path(properties["model_dir"]) / ARTIFACT, limits, Path(tempfile.gettempdir()))
    except NeuronSumError as error:
        logging.error("the model is not loaded: %s; %s", error.message, error.hint)
        raise


def _body(inputs: "Input") -> bytes:
    content = inputs.get_content()
    return bytes(content.get("data") or b"")


def _refusal(error: "ServiceError") -> "Output":
    """An error as DJL carries it in async mode: a code, and one text, which our plugin makes the body again."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return _output({"data": "", "last": True, "code": error.code, "error": json.dumps(error.body())}, headers)


def _output(content: dict[str, object], headers: dict[str, str]) -> "Output":
    """Of async mode: a map of texts in djl_python's binary form, and properties that become headers."""
    from djl_python import Output

    output = Output()
    for name, value in headers.items():
        output.add_property(name, value)
    output.add(Output.binary_encode(content), key="data")
    return output
