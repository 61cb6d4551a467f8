"""The service between the server's handler and the compiled graphs: turns requests into summaries."""

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from neuron_sum.artifact import Artifact, open_artifact
from neuron_sum.data.rounds import Rounds, open_rounds
from neuron_sum.errors import DataError
from neuron_sum.evaluation.faithfulness import check_summary
from neuron_sum.prompts import Tokenizer
from neuron_sum.recipes.schema import GenerateConfig, ServeConfig
from neuron_sum.runtimes.base import CompiledGenerator
from neuron_sum.runtimes.generation import choose_bucket
from neuron_sum.runtimes.load import load_generator
from neuron_sum.sections import SectionCoder, Sections, decode, parse_sections, without_headings
from serving import metrics
from serving.adapters import BASE, Adapters
from serving.batching import Batcher, Work, as_service_error
from serving.limits import Item
from serving.parsing import check_media_type, parse
from serving.schema import JSON, TEXT, Check, Piece, ServiceError, Summary, answer_type, render, render_event

HANG_FACTOR = 3
"""Number of deadlines after which a batch counts as hanging: the worker exits, and the server starts another one."""
HANG_EXIT_CODE = 70

TOKENIZERS = 2
"""Number of threads for tokenizing, besides the thread that receives and answers requests."""

LOG = logging.getLogger("neuron_sum")
T = TypeVar("T")


@dataclass
class Answer:
    """A response of the server.

    Attributes:
        body: The body as text.
        content_type: The body's content type.
    """

    body: str
    content_type: str


@dataclass
class _RequestRecord:
    """The figures of a request for its log line and metrics."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    items: int = 0
    works: list[Work] = field(default_factory=list)
    output_tokens: int = 0
    truncated: int = 0
    errors: int = 0
    on_piece: Callable[[Piece], None] | None = None


@dataclass
class _Job:
    """An item while it is summarized.

    Attributes:
        number: Its number in the request, from 0.
        rounds: Its prompts.
        settings: Its generation settings.
        adapter: The adapter's name; None for the base model.
        works: The prompts of the current or last round in the queue.
        error: The error of a prompt, which ends the item.
    """

    number: int
    rounds: Rounds
    settings: GenerateConfig
    adapter: str | None
    works: list[Work] = field(default_factory=list)
    error: ServiceError | None = None

    def start(self, deadline: float) -> list[Work]:
        """The prompts of the round for the queue."""
        self.works = [
            Work(each.input_ids, self.settings, self.adapter, deadline, is_first=number == 0)
            for number, each in enumerate(self.rounds.prompts)
        ]
        return self.works

    def texts(self, tokenizer: Tokenizer, coder: SectionCoder | None) -> list[str] | None:
        """The summaries of a finished round; None if one failed."""
        failures = [error for work in self.works if isinstance(error := work.result.exception(), ServiceError)]
        if failures:
            self.error = failures[0]
            return None
        return [decode(work.result.result(), tokenizer, coder) for work in self.works]

    def answer(self, sections: Sections) -> Summary | ServiceError:
        """The answer to the item."""
        if self.error is not None:
            return self.error
        text = str(self.rounds.summary)
        return Summary(
            summary_text=text,
            sections=parse_sections(text, sections).texts if sections else None,
            truncated=self.rounds.truncated,
            coverage=self.rounds.coverage,
            input_tokens=self.rounds.input_tokens,
            output_tokens=sum(len(work.result.result()) for work in self.works),
        )


class Service:
    """A loaded and warmed-up artifact.

    Args:
        artifact: The artifact to serve.
        generator: The artifact's generator.
        tokenizer: The artifact's tokenizer.
        limits: The limits of the endpoint.
        registered: The folder with the registered adapters, which all workers of the model share.
    """

    def __init__(
        self,
        artifact: Artifact,
        generator: CompiledGenerator,
        tokenizer: Tokenizer,
        limits: ServeConfig,
        registered: Path,
    ) -> None:
        self._artifact, self._generator, self._tokenizer, self._limits = artifact, generator, tokenizer, limits
        self._prompt = artifact.recipe.prompt.resolve()
        self._sections = artifact.recipe.output.sections
        self._coder = SectionCoder.of(self._sections, tokenizer)
        self._tokenizers = ThreadPoolExecutor(TOKENIZERS, "tokenizer")
        self._batcher = Batcher(generator, limits.queue_size, self._report_batch)
        self.adapters = Adapters(generator.adapters, artifact.manifest.adapter_names, registered)

    @classmethod
    def load(cls, folder: Path, limits: ServeConfig, registered: Path) -> "Service":
        """Check the whole artifact, load it and run every graph once.

        Args:
            folder: The artifact's folder.
            limits: The limits of the endpoint.
            registered: The folder as in the constructor; its adapters are loaded.

        Raises:
            NeuronSumError: If the files differ from the manifest, or the artifact was compiled for another machine.
        """
        started = time.monotonic()
        artifact = open_artifact(folder)
        if artifact.manifest.quality_warning:
            LOG.warning("%s: %s", folder, artifact.manifest.quality_warning)
        generator, tokenizer = load_generator(artifact)
        generator.warm_up()
        service = cls(artifact, generator, tokenizer, limits, registered)
        service.adapters.load()
        LOG.info(
            json.dumps(
                {
                    "event": "loaded",
                    "artifact": str(folder),
                    "seconds": round(time.monotonic() - started, 2),
                    "buckets": [str(bucket) for bucket in artifact.manifest.buckets],
                    "adapters": service.adapters.names,
                    "limits": limits.model_dump(),
                }
            )
        )
        return service

    async def answer(
        self,
        body: bytes,
        content_type: str | None,
        accept: str | None,
        adapter: str | None,
        request_id: str,
        on_piece: Callable[[Piece], None] | None = None,
    ) -> Answer:
        """Answer a request.

        Args:
            body: The body as received.
            content_type: The Content-Type header.
            accept: The Accept header.
            adapter: SageMaker's adapter header; parameters.adapter in the request takes precedence.
            request_id: The id for the log.
            on_piece: Called with each finished piece of a long dialogue.

        Raises:
            ServiceError: If the request is refused as a whole.
        """
        record, status = _RequestRecord(request_id, on_piece=on_piece), 200
        try:
            kind = check_media_type(content_type, body, self._limits)
            items = parse(body, kind, self._limits)
            answers = await self._answers(items, adapter, record)
            kind = answer_type(accept, kind, len(items))
            # A single text is refused by the status. In a list it gets an entry, which plain text cannot express.
            single = len(items) == 1 and (items[0].field in ("inputs", "body") or kind == TEXT)
            if single and isinstance(answers[0], ServiceError):
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
            self._report_request(record, status)

    async def stream(
        self, body: bytes, content_type: str | None, adapter: str | None, request_id: str
    ) -> AsyncIterator[tuple[str, bool]]:
        """Answer a request with server-sent events: the finished pieces, then the answer or an error.

        Args:
            body: The body as received.
            content_type: The Content-Type header.
            adapter: SageMaker's adapter header.
            request_id: The id for the log.

        Yields:
            Each event as text, and whether it is the last.

        Raises:
            ServiceError: If the request is refused as a whole, before the first event.
        """
        pieces = asyncio.Queue[Piece | None]()
        answering = asyncio.ensure_future(self.answer(body, content_type, JSON, adapter, request_id, pieces.put_nowait))
        answering.add_done_callback(lambda _: pieces.put_nowait(None))
        begun = False
        while (piece := await pieces.get()) is not None:
            begun = True
            yield render_event("piece", piece.model_dump_json()), False
        try:
            yield render_event("answer", answering.result().body), True
        except ServiceError as error:
            if not begun:
                raise
            yield render_event("error", json.dumps({"error": error.body()})), True

    async def _answers(
        self, items: Sequence[Item], adapter: str | None, record: _RequestRecord
    ) -> list[Summary | ServiceError]:
        record.items = len(items)
        deadline = record.started + self._limits.deadline_s
        self._exit_if_hanging()
        try:
            await asyncio.wait_for(self.adapters.follow(), deadline - time.monotonic())
        except asyncio.TimeoutError as error:
            raise self._late() from error
        jobs = [await self._open(number, item, adapter, deadline) for number, item in enumerate(items)]
        await self._finish([job for job in jobs if isinstance(job, _Job)], record, deadline)
        results = [job if isinstance(job, ServiceError) else job.answer(self._sections) for job in jobs]
        record.truncated = sum(isinstance(result, Summary) and result.truncated for result in results)
        await self._check(items, results, deadline)
        record.errors = sum(isinstance(result, ServiceError) for result in results)
        record.output_tokens = sum(result.output_tokens for result in results if isinstance(result, Summary))
        if self._limits.log_text:
            for item, result in zip(items, results, strict=True):
                text = result.summary_text if isinstance(result, Summary) else result.message
                LOG.info(
                    json.dumps({"request": record.request_id, "text": item.text, "summary": text}, ensure_ascii=False)
                )
        return results

    async def _open(self, number: int, item: Item, adapter: str | None, deadline: float) -> _Job | ServiceError:
        """The prompts of an item, or the error if it is refused.

        Raises:
            ServiceError: 503 at the deadline.
        """
        if item.error is not None:
            return item.error
        try:
            settings, name = self._settings(item), self._adapter(item, adapter)
        except ServiceError as error:
            return error
        data = self._artifact.recipe.data
        try:  # one by one, so that requests also take turns here and stop at the deadline
            [rounds] = await self._in_thread(deadline, open_rounds, self._prompt, self._tokenizer, [item.text], data)
        except DataError as error:
            return ServiceError(422, f"{item.field}: {error.message}; send a shorter dialogue", item.field)
        return _Job(number, rounds, settings, name)

    async def _finish(self, jobs: Sequence[_Job], record: _RequestRecord, deadline: float) -> None:
        """Summarize every item, the pieces of long ones together, then the merges of their summaries.

        Raises:
            ServiceError: 503 at the deadline, or if the queue is full.
        """
        running = list(jobs)
        while running:
            works = [work for job in running for work in job.start(deadline)]
            self._batcher.submit(works, accepted=bool(record.works))
            record.works += works
            if record.on_piece is not None:
                for job in running:
                    self._report_pieces(job, record.on_piece)
            await self._wait(works, deadline)
            for job in running:
                texts = job.texts(self._tokenizer, self._coder)
                if texts is not None and len(texts) > 1:
                    await self._in_thread(deadline, job.rounds.close, texts)
                elif texts is not None:  # nothing to tokenize, so that it does not wait for other requests' texts
                    job.rounds.close(texts)
            running = [job for job in running if job.error is None and job.rounds.summary is None]

    def _report_pieces(self, job: _Job, on_piece: Callable[[Piece], None]) -> None:
        """Call a function with each finished piece of a round; not for a dialogue that is one piece."""
        number, count = job.rounds.number + 1, len(job.works)
        if number == count == 1:
            return

        def report(piece: int, done: "asyncio.Future[list[int]]") -> None:
            if not done.cancelled() and done.exception() is None:
                text = decode(done.result(), self._tokenizer, self._coder)
                on_piece(Piece(input=job.number, round=number, piece=piece, pieces=count, summary_text=text))

        for piece, work in enumerate(job.works, 1):
            asyncio.wrap_future(work.result).add_done_callback(partial(report, piece))

    async def _in_thread(self, deadline: float, function: Callable[..., T], *arguments: object) -> T:
        """The result of a function, called outside the thread that receives and answers requests.

        Raises:
            ServiceError: 503 at the deadline.
        """
        try:
            calling = asyncio.get_running_loop().run_in_executor(self._tokenizers, function, *arguments)
            return await asyncio.wait_for(calling, deadline - time.monotonic())
        except asyncio.TimeoutError as error:
            raise self._late() from error

    async def _check(self, items: Sequence[Item], results: Sequence[Summary | ServiceError], deadline: float) -> None:
        """Add the findings of the rules to the summaries whose request asks for them, outside this thread.

        Raises:
            ServiceError: 503 at the deadline.
        """
        for item, result in zip(items, results, strict=True):
            if item.parameters.checks and isinstance(result, Summary):
                text = without_headings(result.summary_text, self._sections)
                checked = await self._in_thread(deadline, check_summary, text, item.text)
                result.checks = [Check(**finding.as_dict()) for finding in checked.findings] if checked else []

    def _adapter(self, item: Item, adapter: str | None) -> str | None:
        name = item.parameters.adapter if item.parameters.adapter is not None else adapter
        if name is None:
            return self._generator.default_adapter
        if name == BASE:
            return None
        self.adapters.check(name)
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
        if self._coder is not None and settings.max_new_tokens < self._coder.shortest:
            raise ServiceError(
                422,
                f"max_new_tokens is {settings.max_new_tokens}; the sections need at least {self._coder.shortest}",
                f"{field}max_new_tokens",
            )
        if settings.num_beams not in compiled.num_beams:
            widths = ", ".join(map(str, compiled.num_beams))
            raise ServiceError(422, f"num_beams is {settings.num_beams}; compiled for {widths}", f"{field}num_beams")
        for name, reason in compiled.unsupported.items():
            if getattr(settings, name) != (default := GenerateConfig.model_fields[name].default):
                raise ServiceError(
                    422,
                    f"{name} is {getattr(settings, name)}; this model allows only {default}: {reason}",
                    field + name,
                )
        return settings

    async def _wait(self, works: Sequence[Work], deadline: float) -> None:
        """Wait for every result; errors of single items stay in their results.

        Raises:
            ServiceError: 503 at the deadline.
        """
        results = [asyncio.wrap_future(work.result) for work in works]
        _, late = await asyncio.wait(results, timeout=deadline - time.monotonic())
        for result in results:
            if result.done() and not result.cancelled():
                result.exception()  # retrieved, so that asyncio does not log it as unhandled
        if late:
            for result in late:
                result.cancel()
            raise self._late()

    def _late(self) -> ServiceError:
        return ServiceError(
            503,
            f"no answer within {self._limits.deadline_s:g} s; send fewer or shorter dialogues, or try again later",
            None,
            1,
        )

    def _exit_if_hanging(self) -> None:
        """Exit if a batch hangs. Called by each request; without requests, a hanging batch does no harm."""
        since = self._batcher.running_since
        if since is not None and time.monotonic() - since > HANG_FACTOR * self._limits.deadline_s:
            LOG.critical("a batch has been running for %.0f s; the worker exits", time.monotonic() - since)
            os._exit(HANG_EXIT_CODE)

    def _report_batch(self, batch: Sequence[Work], seconds: float) -> None:
        longest = max(len(work.prompt) for work in batch)
        size = max(work.batch for work in batch)
        bucket = choose_bucket(self._generator, size, longest, batch[0].settings)
        metrics.report_batch(batch, seconds, self._batcher.waiting, str(bucket))

    def _report_request(self, record: _RequestRecord, status: int) -> None:
        seconds = time.monotonic() - record.started
        input_tokens = sum(len(work.prompt) for work in record.works)
        started = [work.started for work in record.works if work.started]
        LOG.info(
            json.dumps(
                {
                    "request": record.request_id,
                    "status": status,
                    "seconds": round(seconds, 4),
                    "queue_seconds": round(min(started) - record.started, 4) if started else None,
                    "items": record.items,
                    "errors": record.errors,
                    "batch": max((work.batch for work in record.works), default=0),
                    "input_tokens": input_tokens,
                    "output_tokens": record.output_tokens,
                    "truncated": record.truncated,
                    "adapters": sorted({work.adapter or BASE for work in record.works}),
                }
            )
        )
        metrics.report_request(status, seconds, input_tokens, record.output_tokens, record.truncated)
