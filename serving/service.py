"""Requests in, summaries out: everything between the server's handler and the compiled graphs."""

import asyncio
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from neuron_sum import files
from neuron_sum.artifact import ADAPTER_NAME, Artifact, open_artifact
from neuron_sum.errors import ModelError
from neuron_sum.prompts import EncodedPrompt
from neuron_sum.recipes.schema import GenerateConfig, ServeConfig
from neuron_sum.runtimes.base import CompiledGenerator
from neuron_sum.runtimes.generation import choose_bucket
from neuron_sum.runtimes.load import load_generator
from neuron_sum.runtimes.slots import AdapterSlots
from serving import metrics
from serving.batching import Batcher, Work, as_service_error
from serving.schema import TEXT, Item, ServiceError, Summary, answer_type, media_type, parse, render

BASE = "base"
"""As an adapter's name: no adapter, where the model has a default one."""

RESERVED = (BASE, ".", "..")
"""What no adapter may be called."""

HANG_FACTOR = 3
"""A batch that runs so many deadlines long will never end: the worker stops, and the server starts another."""
HANG_EXIT_CODE = 70

TOKENIZERS = 2
"""Texts that are tokenized at once, apart from the thread that takes and answers requests."""

LOG = logging.getLogger("neuron_sum")


@dataclass
class Answer:
    """What the server sends.

    Attributes:
        body: Text.
        content_type: Of the body.
    """

    body: str
    content_type: str


@dataclass
class _Asked:
    """A request's figures, for its log line."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    items: int = 0
    works: list[Work] = field(default_factory=list)
    output_tokens: int = 0
    errors: int = 0


class Service:
    """One artifact, loaded and warm.

    Args:
        artifact: What is served.
        generator: Of that artifact.
        tokenizer: Of that artifact.
        limits: How the endpoint behaves.
        state: The file in which registered adapters are remembered, so that they outlive a worker that dies.
    """

    def __init__(
        self,
        artifact: Artifact,
        generator: CompiledGenerator,
        tokenizer: PreTrainedTokenizerFast,
        limits: ServeConfig,
        state: Path,
    ) -> None:
        self._artifact, self._generator, self._tokenizer, self._limits = artifact, generator, tokenizer, limits
        self._prompt = artifact.recipe.prompt.resolve()
        self._tokenizers = ThreadPoolExecutor(TOKENIZERS, "tokenizer")
        self._batcher = Batcher(generator, limits.queue_size, self._count_batch)
        self._state = state
        self._registered: dict[str, str] = {}

    @classmethod
    def load(cls, folder: Path, limits: ServeConfig, state: Path) -> "Service":
        """Checks the whole artifact, loads it and runs every graph once.

        Args:
            folder: The artifact.
            limits: How the endpoint behaves.
            state: As in the constructor; what it holds is registered again.

        Raises:
            NeuronSumError: If the manifest does not hold, or this machine is not what it was compiled for.
        """
        started = time.monotonic()
        artifact = open_artifact(folder)
        if artifact.manifest.quality_warning:
            LOG.warning("%s: %s", folder, artifact.manifest.quality_warning)
        generator, tokenizer = load_generator(artifact)
        generator.warm_up()
        service = cls(artifact, generator, tokenizer, limits, state)
        service._register_again()
        LOG.info(
            json.dumps(
                {
                    "event": "loaded",
                    "artifact": str(folder),
                    "seconds": round(time.monotonic() - started, 2),
                    "buckets": [str(bucket) for bucket in artifact.manifest.buckets],
                    "adapters": service.adapters,
                    "limits": limits.model_dump(),
                }
            )
        )
        return service

    @property
    def adapters(self) -> list[str]:
        """The adapters that a request can name."""
        slots = self._generator.adapters
        return slots.names if slots is not None else []

    async def answer(
        self, body: bytes, content_type: str | None, accept: str | None, adapter: str | None, request_id: str
    ) -> Answer:
        """A request from beginning to end.

        Args:
            body: As it came.
            content_type: Its header.
            accept: Its header.
            adapter: SageMaker's adapter header; a request's own parameter goes before it.
            request_id: For the log.

        Raises:
            ServiceError: If it is refused as a whole.
        """
        asked, status = _Asked(request_id), 200
        try:
            kind = media_type(content_type)
            items = parse(body, kind, self._limits)
            answers = await self._answers(items, adapter, asked)
            kind = answer_type(accept, kind, len(items))
            # A text that was sent alone is refused by status; in a list it is an entry, which plain text cannot show.
            alone = len(items) == 1 and (items[0].field in ("inputs", "body") or kind == TEXT)
            if alone and isinstance(answers[0], ServiceError):
                raise answers[0]
            return Answer(render(answers, kind), f"{kind}; charset=utf-8" if kind == TEXT else kind)
        except ServiceError as error:
            status = error.code
            raise
        except Exception as error:
            refusal = as_service_error(error)
            status = refusal.code
            raise refusal from error
        finally:
            self._count_request(asked, status)

    async def register(self, name: str, folder: str, *, known: bool) -> None:
        """Loads an adapter into a slot, or replaces one; requests go on meanwhile.

        Args:
            name: What requests will ask for.
            folder: PEFT's layout, on this machine.
            known: Whether it must be there already (an update) or must not (a registration).

        Raises:
            ServiceError: 400, 404, 409 or 422, with the reason.
        """
        slots = self._slots()
        if name in RESERVED or not ADAPTER_NAME.fullmatch(name):
            raise ServiceError(
                400,
                f"{name[:80]!r} is not an adapter name: {ADAPTER_NAME.pattern}, except {', '.join(RESERVED)}",
                "name",
            )
        if known and name not in slots.names:
            raise self._unknown(name)
        if not known and name in slots.names:
            raise ServiceError(409, f"adapter {name!r} is registered; update it instead", "name")
        try:
            await asyncio.to_thread(slots.load, name, Path(folder))
        except ModelError as error:
            raise ServiceError(422, f"{error.message}; {error.hint or ''}".rstrip("; "), "src") from error
        self._remember({**self._registered, name: folder})

    async def unregister(self, name: str) -> None:
        """Frees an adapter's slot; batches that use it are not disturbed.

        Raises:
            ServiceError: 404 for one that is not there.
        """
        slots = self._slots()
        if name not in slots.names:
            raise self._unknown(name)
        slots.unload(name)
        self._remember({other: folder for other, folder in self._registered.items() if other != name})

    async def _answers(self, items: Sequence[Item], adapter: str | None, asked: _Asked) -> list[Summary | ServiceError]:
        asked.items = len(items)
        deadline = asked.started + self._limits.deadline_s
        self._stop_if_hanging()
        prompts = iter(await self._encode([item.text for item in items if item.error is None], deadline))
        answers = [item.error or self._work(item, next(prompts), adapter, deadline) for item in items]
        asked.works = [answer for answer in answers if isinstance(answer, Work)]
        if asked.works:
            self._batcher.submit(asked.works)
            await self._wait(asked.works, deadline)
        done = [self._summary(answer) if isinstance(answer, Work) else answer for answer in answers]
        asked.errors = sum(isinstance(answer, ServiceError) for answer in done)
        asked.output_tokens = sum(answer.output_tokens for answer in done if isinstance(answer, Summary))
        if self._limits.log_text:
            for item, answer in zip(items, done, strict=True):
                said = answer.summary_text if isinstance(answer, Summary) else answer.message
                LOG.info(
                    json.dumps({"request": asked.request_id, "text": item.text, "summary": said}, ensure_ascii=False)
                )
        return done

    async def _encode(self, texts: Sequence[str], deadline: float) -> list[EncodedPrompt]:
        """Tokenizes apart from the thread that takes and answers requests.

        Raises:
            ServiceError: 503 at the deadline.
        """
        length = self._artifact.recipe.data.max_source_length
        loop, prompts = asyncio.get_running_loop(), list[EncodedPrompt]()
        for text in texts:  # one by one, so that requests also take turns here and end at the deadline
            asked = loop.run_in_executor(self._tokenizers, self._prompt.encode, self._tokenizer, [text], length)
            try:
                prompts += await asyncio.wait_for(asked, deadline - time.monotonic())
            except asyncio.TimeoutError as error:
                raise self._late() from error
        return prompts

    def _work(self, item: Item, prompt: EncodedPrompt, adapter: str | None, deadline: float) -> Work | ServiceError:
        """An item for the queue, or why its parameters do not go with what was compiled."""
        try:
            settings, name = self._settings(item), self._adapter(item, adapter)
        except ServiceError as error:
            return error
        return Work(prompt.input_ids, settings, name, deadline, prompt.truncated)

    def _adapter(self, item: Item, adapter: str | None) -> str | None:
        name = item.parameters.adapter if item.parameters.adapter is not None else adapter
        if name is None:
            return self._generator.default_adapter
        if name == BASE:
            return None
        if name not in self.adapters:
            raise self._unknown(name)
        return name

    def _settings(self, item: Item) -> GenerateConfig:
        compiled, field = self._generator, "parameters."
        try:
            settings = item.parameters.settings(self._artifact.recipe.generate)
        except ValidationError as error:
            raise ServiceError(422, f"parameters: {error.errors()[0]['msg']}", "parameters") from error
        longest = max(bucket.target_len for bucket in compiled.buckets)
        if settings.max_new_tokens > longest:
            raise ServiceError(
                422,
                f"max_new_tokens is {settings.max_new_tokens}; compiled for at most {longest}",
                f"{field}max_new_tokens",
            )
        if settings.num_beams not in compiled.num_beams:
            widths = ", ".join(map(str, compiled.num_beams))
            raise ServiceError(422, f"num_beams is {settings.num_beams}; compiled for {widths}", f"{field}num_beams")
        for name, reason in compiled.unsupported.items():
            if getattr(settings, name) != (default := GenerateConfig.model_fields[name].default):
                raise ServiceError(
                    422, f"{name} is {getattr(settings, name)}; here only {default}: {reason}", field + name
                )
        return settings

    async def _wait(self, works: Sequence[Work], deadline: float) -> None:
        """Until every result is there; the errors of single items stay in their results.

        Raises:
            ServiceError: 503 at the deadline.
        """
        results = [asyncio.wrap_future(work.result) for work in works]
        _, late = await asyncio.wait(results, timeout=deadline - time.monotonic())
        for result in results:
            if result.done() and not result.cancelled():
                result.exception()  # seen: asyncio must not complain of it
        if late:
            for result in late:
                result.cancel()
            raise self._late()

    def _late(self) -> ServiceError:
        return ServiceError(
            503,
            f"no answer within {self._limits.deadline_s:g} s; send fewer or shorter dialogues at once, or again later",
            None,
            1,
        )

    def _stop_if_hanging(self) -> None:
        """Asked by each request: while none comes, a batch that hangs harms nobody."""
        since = self._batcher.running_since
        if since is not None and time.monotonic() - since > HANG_FACTOR * self._limits.deadline_s:
            LOG.critical("a batch hangs since %.0f s; the worker stops", time.monotonic() - since)
            os._exit(HANG_EXIT_CODE)

    def _summary(self, work: Work) -> Summary | ServiceError:
        error = work.result.exception()
        if isinstance(error, ServiceError):
            return error
        tokens = work.result.result()
        text = self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return Summary(
            summary_text=text, truncated=work.truncated, input_tokens=len(work.prompt), output_tokens=len(tokens)
        )

    def _slots(self) -> AdapterSlots:
        slots = self._generator.adapters
        if slots is None:
            raise ServiceError(
                400, "this model has no adapter slots; compile with compile.adapters", "parameters.adapter"
            )
        return slots

    def _unknown(self, name: str) -> ServiceError:
        known = ", ".join(self.adapters) or "none"
        return ServiceError(404, f"no adapter {name!r}; there are: {known}", "parameters.adapter")

    def _remember(self, registered: dict[str, str]) -> None:
        self._registered = registered
        files.write_json(self._state, registered)

    def _register_again(self) -> None:
        """After a worker died: what had been registered with it."""
        if not self._state.is_file():
            return
        for name, folder in files.read_json(self._state).items():
            try:
                self._slots().load(name, Path(folder))
                self._registered[name] = folder
            except ModelError as error:
                LOG.warning("adapter %r was registered before and cannot be loaded again: %s", name, error.message)

    def _count_batch(self, batch: Sequence[Work], seconds: float) -> None:
        longest = max(len(work.prompt) for work in batch)
        bucket = choose_bucket(self._generator, len(batch), longest, batch[0].settings)
        metrics.of_batch(batch, seconds, self._batcher.waiting, str(bucket))

    def _count_request(self, asked: _Asked, status: int) -> None:
        seconds = time.monotonic() - asked.started
        input_tokens = sum(len(work.prompt) for work in asked.works)
        truncated = sum(work.truncated for work in asked.works)
        started = [work.started for work in asked.works if work.started]
        LOG.info(
            json.dumps(
                {
                    "request": asked.request_id,
                    "status": status,
                    "seconds": round(seconds, 4),
                    "queue_seconds": round(min(started) - asked.started, 4) if started else None,
                    "items": asked.items,
                    "errors": asked.errors,
                    "batch": max((work.batch for work in asked.works), default=0),
                    "input_tokens": input_tokens,
                    "output_tokens": asked.output_tokens,
                    "truncated": truncated,
                    "adapters": sorted({work.adapter or BASE for work in asked.works}),
                }
            )
        )
        metrics.of_request(status, seconds, input_tokens, asked.output_tokens, truncated)
