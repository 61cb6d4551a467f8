"""The readers of the fuzzer: valid files of each, and the public function that reads them."""

import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import typer
import yaml
from typer.testing import CliRunner

from benchmarks.fuzz_inputs import ODD_TEXTS, change, dump, mutate

Files = dict[str, bytes]
ROWS = [
    {"id": f"r{number}", "dialogue": f"#Person1#: Hello {number}.\n#Person2#: Hi.", "summary": f"They greet {number}."}
    for number in range(4)
]
RECIPE = {
    "name": "fuzz",
    "extends": "tiny",
    "description": "A recipe.",
    "data": {
        "source": "jsonl",
        "path": "missing",
        "columns": {"id": "id", "summary": ["summary", "other"]},
        "max_examples": 5,
    },
    "output": {"sections": ["reason", {"name": "follow_up", "required": False, "max_tokens": 9}]},
    "prompt": {"preset": None, "template": "Summarize: {dialogue}"},
    "model": {
        "config": {"model_type": "t5", "d_model": 16, "num_layers": 1},
        "tokenizer": {"vocab_size": 400},
        "seed": 1,
    },
    "method": {"name": "lora", "r": 4, "target_modules": ["q", "v"]},
    "train": {"learning_rate": 1e-3, "max_steps": 3, "shapes": {"plan": "buckets", "sizes": [[64, 16], [128, 32]]}},
    "generate": {"num_beams": 2, "length_penalty": 0.8},
    "compile": {"batch_sizes": [1, 4], "adapters": {"slots": 2}},
    "serve": {"deadline_s": 10.5},
    "evaluate": {"split": "test", "confidence": 0.9},
}
LOG = (
    b"2026-01-02T03:04:05.678Z [rank0]: RuntimeError: No space left on device\n"
    b'{"message": "Killed", "timestamp": 1767323045678}\n"2026-01-02","ERROR","NEURONX-CC: NCC_EVRF001"\n'
    b"[1,mpirank:0]<stderr>: x\n"
)
REQUEST = {"inputs": ["#Person1#: Hi.", "b"], "parameters": {"max_new_tokens": 5, "num_beams": 1, "adapter": "x"}}
ANSWERS = [
    {"summary_text": "a", "truncated": False, "coverage": 1.0, "input_tokens": 3, "output_tokens": 1, **more}
    for more in ({}, {"sections": {"reason": "a", "follow_up": ""}})
]
SECTION_ROWS: list[dict[str, Any]] = [
    {"dialogue": "#Person1#: Hi.", "summary": "Reason: A greeting.\nFollow up: On Monday."},
    {"dialogue": "#Person1#: Ho.", "summary": "## REASON\nA greeting."},
    {"dialogue": "#Person1#: Ha.", "summary": {"reason": "A greeting.", "follow_up": None}},
    {"dialogue": "#Person1#: He.", "summary": '{"reason": "A greeting."}'},
]
LEDGER = {
    "time": "2026-01-02T03:04:05Z",
    "event": "intent",
    "run": "r-1",
    "kind": "job",
    "name": "j",
    "details": {"a": 1},
}


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: The name in the table.
        files: The valid files.
        read: Reads the folder with the files.
        targets: The files to change; default: all.
        complete: Called after the change, such as to sign a manifest again.
    """

    name: str
    files: Files
    read: Callable[[Path], object]
    targets: tuple[str, ...] = ()
    complete: Callable[[Path, Random], None] | None = None

    def make(self, random: Random) -> Files:
        """The files with one of them changed."""
        target = random.choice(self.targets or tuple(self.files))
        return {**self.files, target: mutate(target, self.files[target], random)}


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _csv(delimiter: str = ",") -> bytes:
    cells = [list(ROWS[0]), *([str(value) for value in row.values()] for row in ROWS)]
    return "".join(delimiter.join(f'"{cell}"' for cell in row) + "\n" for row in cells).encode()


def _yaml(value: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(value), sort_keys=False).encode()


def text_readers() -> list[Reader]:
    """Readers that need no model."""
    from neuron_sum.data.sources import load_dataset
    from neuron_sum.data.transcripts import read_dialogue
    from neuron_sum.doctor.explain import explain
    from neuron_sum.evaluation.predictions import PredictionColumns, read_predictions
    from neuron_sum.evaluation.preferences import preferences_of
    from neuron_sum.evaluation.ratings import read_texts
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.recipes.schema import DataConfig, EvaluateConfig, OutputConfig, SectionConfig, ServeConfig
    from neuron_sum.runs.folder import open_run
    from sagemaker_jobs.aws.ledger import Ledger
    from sagemaker_jobs.aws.names import AwsContext
    from serving.client import Client
    from serving.parsing import parse
    from serving.schema import CONTENT_TYPES, answer_type, media_type
    from serving.transport import Reply

    sections = OutputConfig(sections=(SectionConfig(name="reason"), SectionConfig(name="follow_up", required=False)))

    def data(source: str, skip_bad: bool, output: OutputConfig | None = None) -> Callable[[Path], object]:
        return lambda folder: load_dataset(
            DataConfig.model_validate({"source": source, "path": str(folder), "skip_bad": skip_bad}),
            output or OutputConfig(),
        )

    def predictions(name: str) -> Callable[[Path], object]:
        columns = PredictionColumns(prediction="summary", references=("summary",))
        return lambda folder: read_predictions(folder / name, columns, None)

    def ratings(folder: Path) -> object:
        found = preferences_of(folder, read_texts(folder), EvaluateConfig(bootstrap_samples=100))
        return found and found.as_dict()

    def overrides(folder: Path) -> object:
        words = (folder / "overrides.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n")
        return load_recipe("tiny", words)

    def requests(folder: Path) -> None:
        from serving.schema import ServiceError

        for kind in CONTENT_TYPES:
            try:
                parse((folder / "request.json").read_bytes(), kind, ServeConfig())
            except ServiceError as error:
                dump(error.body())

    def headers(folder: Path) -> None:
        from serving.schema import ServiceError

        header = (folder / "header.txt").read_bytes().decode("latin-1")
        answer_type(header, "application/json", 1)
        try:
            media_type(header)
        except ServiceError as error:
            dump(error.body())

    def answers(folder: Path) -> None:
        body = (folder / "answers.json").read_bytes().decode("utf-8", "replace")
        reply = Reply((200, 200, 400, 503)[len(body) % 4], body)
        client = Client("http://127.0.0.1:9", attempts=1, backoff_s=0)
        with client, patch.object(client._transport, "send", lambda _: reply):
            client.summarize(["a", "b"])

    def ledger(folder: Path) -> object:
        return Ledger(AwsContext("123456789012", "us-east-1"), folder).entries()

    def results(folder: Path) -> object:
        opened = open_run(folder)
        return opened.read_results(), opened.read_record(), opened.read_log()

    rows = _lines(ROWS)
    transcripts = {
        "train.vtt": b"WEBVTT\n\n1\n00:01.000 --> 00:02.000\n<v Ann>Hello.</v>\n\n00:03.000 --> 00:04.000\nBob: Hi.\n",
        "train.srt": b"1\n00:00:01,000 --> 00:00:02,000\nAnn: Hello.\n\n2\n00:00:03,000 --> 00:00:04,000\nBob: Hi.\n",
        "train.txt": b"[01.02.26, 10:00:00] Ann: Hello\n[01.02.26, 10:00:09] Bob: Hi\n",
    }
    return [
        Reader("recipe", {"recipe.yaml": _yaml(RECIPE)}, lambda folder: load_recipe(str(folder / "recipe.yaml"))),
        Reader("overrides", {"overrides.txt": b"train.max_steps=5\nmethod=lora\ndata.columns={id: b}"}, overrides),
        *(
            Reader(f"data, {source} {name}{', skip' * skip}", {name: content}, data(source, skip))
            for (source, name, content), skip in product(
                (
                    ("jsonl", "train.jsonl", rows),
                    ("csv", "train.csv", _csv()),
                    ("csv", "train.tsv", _csv("\t")),
                    ("samsum", "train.json", json.dumps(ROWS).encode()),
                    ("hub", "train.csv", _csv()),
                    ("hub", "train.json", json.dumps(ROWS).encode()),
                ),
                (False, True),
            )
        ),
        Reader("data, sections", {"train.jsonl": _lines(SECTION_ROWS)}, data("jsonl", False, sections)),
        Reader("data, parquet", {"train.parquet": _parquet()}, data("hub", False)),
        *(Reader(f"data, {name}", {name: content}, _dialogue_file) for name, content in transcripts.items()),
        *(
            Reader(f"predictions, {name}", {name: content}, predictions(name))
            for name, content in (
                ("p.jsonl", rows),
                ("p.json", json.dumps(ROWS).encode()),
                ("p.csv", _csv()),
                ("p.tsv", _csv("\t")),
                ("p.txt", b"They greet.\nThey part.\n"),
            )
        ),
        Reader("ratings", _rated_comparison(), ratings),
        Reader("dialogue", {"d.txt": b"#Person1#: Hi.\n"}, lambda folder: read_dialogue(folder / "d.txt")),
        Reader("log", {"log.txt": LOG * 3}, lambda folder: explain(io.BytesIO((folder / "log.txt").read_bytes()))),
        Reader("run folder", run_files(), results),
        Reader("request", {"request.json": json.dumps(REQUEST).encode()}, requests),
        Reader("headers", {"header.txt": b"application/json; charset=utf-8, text/plain;q=0.5"}, headers),
        Reader("answers", {"answers.json": json.dumps(ANSWERS).encode()}, answers),
        Reader("ledger", {"aws/123456789012-us-east-1.jsonl": _lines([LEDGER, {**LEDGER, "event": "made"}])}, ledger),
    ]


def _rated_comparison() -> Files:
    """The files of a comparison of ten dialogues, of which two raters have rated each pair of summaries."""
    from neuron_sum.evaluation.ratings import RATINGS, SUMMARIES, Rating, pairs_of

    entries = [
        {
            "id": f"r{number}",
            "dialogue": f"#Person1#: Hello {number}.\n#Person2#: Hi.",
            "summaries": {
                "first": {"text": f"They greet {number}.", "ROUGE-1": 40.0 + number % 3},
                "second": {"text": "They part.", "ROUGE-1": 41.0},
            },
        }
        for number in range(10)
    ]
    lines = [
        Rating(
            rater=rater,
            example=pair.example,
            left="second",
            right="first",
            choice=choices[number % len(choices)],
            reason="shorter" if rater == "Bob" else "",
            pair=pair.key,
            time=datetime(2026, 1, 2, tzinfo=timezone.utc),
        ).model_dump(mode="json")
        for rater, choices in (("Ann", ("left", "right", "equal")), ("Bob", ("left", "both bad")))
        for number, pair in enumerate(pairs_of(entries))
    ]
    return {SUMMARIES: _lines(entries), RATINGS: _lines(lines)}


def _dialogue_file(folder: Path) -> object:
    """Reads a transcript as one dialogue."""
    from neuron_sum.data.transcripts import read_dialogue

    return [read_dialogue(path) for path in folder.iterdir()]


def _parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    target = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), target)
    return target.getvalue()


def model_readers() -> list[Reader]:
    """Readers of checkpoints, tokenizers, adapters, artifacts and archives; the models have random weights."""
    import peft
    import torch
    import transformers

    from neuron_sum import artifact
    from neuron_sum.models.adapters import load_adapter
    from neuron_sum.models.base import load_base, load_tokenizer
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.recipes.schema import ModelConfig, TrainedTokenizer
    from neuron_sum.runs.trained import load_weights
    from serving.package import unpack, write_archive

    t5 = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    llama = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    readers = []
    for family in (t5, llama):
        name = str(family["model_type"])
        config = ModelConfig(config=family, tokenizer=TrainedTokenizer(vocab_size=300))
        tokenizer = load_tokenizer(config, [row["dialogue"] for row in ROWS])
        model = load_base(config, tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            checkpoint = _files(Path(folder))
        task = "SEQ_2_SEQ_LM" if family is t5 else "CAUSAL_LM"
        targets = ["q", "v"] if family is t5 else ["q_proj", "v_proj"]
        lora: Any = peft.LoraConfig(task_type=task, r=2, target_modules=targets)
        soft: Any = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3, num_transformer_submodules=1)
        weights = tuple(
            file for file in checkpoint if file in ("config.json", "generation_config.json", "model.safetensors")
        )
        texts = tuple(file for file in checkpoint if file not in weights)
        readers += [
            Reader(f"checkpoint, {name}", checkpoint, load_weights, weights),
            Reader(
                f"tokenizer, {name}",
                checkpoint,
                lambda folder: load_tokenizer(ModelConfig(name_or_path=str(folder)))("a dialogue"),
                texts,
            ),
        ]
        for kind, method in (("lora", lora), ("soft prompt", soft)):
            fresh = transformers.AutoModelForSeq2SeqLM if family is t5 else transformers.AutoModelForCausalLM
            with tempfile.TemporaryDirectory() as folder:
                peft.get_peft_model(fresh.from_config(model.config), method).save_pretrained(
                    folder, save_embedding_layers=False
                )
                adapter = {file: content for file, content in _files(Path(folder)).items() if not file.endswith(".md")}

            def read(folder: Path, config: ModelConfig = config, tokenizer: Any = tokenizer) -> object:
                return load_adapter(load_base(config, tokenizer), folder)

            readers.append(Reader(f"adapter, {kind} of {name}", adapter, read))

    recipe = load_recipe("tiny")
    prompt = recipe.prompt.resolve()
    manifest = artifact.Manifest(
        **{
            "neuron_sum": "0",
            "model_type": "t5",
            "runtime": "aoti",
            "target": "cpu",
            "dtype": "fp32",
            "kv_dtype": "fp32",
        },
        stack={"torch": "2.8.0"},
        prompt=artifact.PromptRecord.of(prompt),
        tokens=artifact.SpecialTokens(pad=0, ends=(1,), decoder_start=0),
        buckets=(artifact.Bucket(batch=1, source_len=64, target_len=16),),
        num_beams=(1,),
        state=artifact.StateSpec(tensors=4, heads=2, head_dim=4, dtype="fp32"),
        graphs=(
            artifact.GraphFile(kind="encode", batch=1, source_len=64, file="graphs/e.pt2"),
            artifact.GraphFile(kind="step", batch=1, source_len=64, target_len=16, num_beams=1, file="graphs/s.pt2"),
        ),
        aliases={},
        adapters=None,
        adapter_targets={},
        adapter_stacks={},
        default_adapter=None,
        source=artifact.SourceRecord(path="run", fingerprint={"weights of the trained model": "0" * 64}),
        files=dict.fromkeys(("recipe.yaml", "graphs/e.pt2", "graphs/s.pt2"), "0" * 64),
    )
    header = b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "graphs").mkdir()
        for name in ("e.pt2", "s.pt2"):
            (folder / "graphs" / name).write_bytes(b"graph")
        (folder / "weights.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        artifact.write_manifest(folder, manifest.model_copy(update={"files": artifact.hash_files(folder)}))
        compiled = _files(folder)
        write_archive(artifact.open_artifact(folder), recipe.serve, folder / "model.tar.gz")
        packed = (folder / "model.tar.gz").read_bytes()
    changed = ("manifest.json",) * 4 + ("recipe.yaml", "weights.safetensors")

    def read_archive(folder: Path) -> None:
        (folder / "unpacked").mkdir()
        unpack(folder / "model.tar.gz", folder / "unpacked")

    return [
        *readers,
        Reader("artifact", compiled, artifact.open_artifact, changed, _sign),
        Reader("archive", {"model.tar.gz": packed}, read_archive),
    ]


def _sign(folder: Path, random: Random) -> None:
    """Writes the digest of a changed manifest, and the hashes of changed files."""
    from neuron_sum import artifact

    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_bytes())
        if random.random() < 0.5 and isinstance(content.get("files"), dict):
            content["files"] |= artifact.hash_files(folder)
        content.pop("digest", None)
        path.write_text(json.dumps({**content, "digest": artifact._digest(content)}))
    except (ValueError, TypeError, AttributeError, RecursionError, UnicodeError):
        return  # no longer an object that could be signed


def _files(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXCLUDED = ("demo", "serve", "aws rehearse", "dockerfile", "preflight", "aws image", "doctor")
"""Commands that start servers, other processes or long measurements with almost any input."""


@cache
def _commands() -> dict[str, Any]:
    """Every command by its words."""

    def walk(command: Any, words: str) -> Any:
        for name, inner in getattr(command, "commands", {"": None}).items():
            if inner is None:
                yield words, command
            else:
                yield from walk(inner, f"{words} {name}".strip())

    root = typer.main.get_command(_app())
    return {"": root} | {words: command for words, command in walk(root, "") if words not in EXCLUDED}


class Commands(Reader):
    """Command lines with odd values, on changed files; they run in the folder of the files."""

    def make(self, random: Random) -> Files:
        """The files, and words.json with the command line."""
        target = random.choice(tuple(self.files))
        paths = (
            "recipe.yaml",
            "run",
            "predictions.jsonl",
            "log.txt",
            "data",
            "nothing",
            "/dev/null",
            ".",
            "run/recipe.yaml",
        )
        safe = [text for text in ODD_TEXTS if not text.startswith(("~", "..", "https", "file")) and "\0" not in text]

        def value(kind: str) -> str:
            if random.random() < 0.2:
                return random.choice(safe)
            if "int" in kind or "float" in kind:
                return random.choice(("0", "-1", "1", "2", "1e9", "9" * 400, "nan", "inf", "0.5", "x", "1_0"))
            if "path" in kind or random.random() < 0.6:
                return random.choice(paths)
            override = dump(change({"train": {"max_steps": 0}, "data": {"path": "x"}}, random))
            return random.choice(
                (f"model.config={override}", "train.max_steps=0", f"x.y={override[:100]}", random.choice(safe))
            )

        words, command = random.choice(list(_commands().items()))
        line = words.split()
        for parameter in command.params:
            kind = str(getattr(getattr(parameter, "type_descriptor", None), "annotation", str)).lower()
            if parameter.name in ("help", "version", "debug") or (
                parameter.opts[0].startswith("-") and random.random() < 0.7
            ):
                continue
            if parameter.opts[0].startswith("-"):
                line += (
                    [parameter.opts[0]] if getattr(parameter, "is_flag", False) else [parameter.opts[0], value(kind)]
                )
            elif random.random() < 0.9:
                line += [value(kind) for _ in range(random.choice((1, 1, 2)) if parameter.nargs != 1 else 1)]
        changed = {**self.files, target: mutate(target, self.files[target], random)}
        return {**changed, "words.json": json.dumps(line).encode()}


def run_command(folder: Path) -> None:
    """Runs the command line in words.json; raises an error of neuron-sum, or AssertionError for a defect."""
    from neuron_sum import console
    from neuron_sum.errors import NeuronSumError

    words = json.loads((folder / "words.json").read_bytes())
    variables = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    variables |= {
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NEURON_SUM_STATE": str(folder / "state"),
    }
    before = Path.cwd()
    os.chdir(folder)
    try:
        with patch.dict(os.environ, variables), patch.object(console, "settings", console.Settings()):
            done = CliRunner().invoke(_app(), words, input="#Person1#: Hi.\n")
            if done.exit_code == 1 or len(done.stderr) > 500_000 or not isinstance(done.exception, SystemExit | None):
                done = CliRunner().invoke(_app(), [*words, "--debug"], input="#Person1#: Hi.\n")
                raise AssertionError(f"{words}\n{done.output[-6000:]}")
    finally:
        os.chdir(before)
    if done.exit_code:
        raise NeuronSumError(done.output)


@cache
def _app() -> typer.Typer:
    from neuron_sum.cli import build

    return build()


def run_files() -> Files:
    """The files of a run without weights."""
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.runs.contents import RunRecord, RunResults

    results = RunResults(
        method="full",
        train_loss=1.5,
        eval_loss=None,
        trainable_parameters=9,
        all_parameters=9,
        weights_bytes=36,
        data="x",
        data_license=None,
    )
    return {
        "recipe.yaml": load_recipe("tiny").to_yaml().encode(),
        "run.json": RunRecord(fingerprint={"prompt": "0" * 64}).model_dump_json().encode(),
        "all_results.json": results.model_dump_json().encode(),
        "log.jsonl": _lines([{"step": 1, "loss": 2.5}, {"step": 2, "eval_loss": 2.25}]),
    }


@cache
def all_readers() -> dict[str, Reader]:
    """Every reader by its name."""
    command_files = {
        **{
            "recipe.yaml": _yaml(RECIPE),
            "predictions.jsonl": _lines(ROWS),
            "log.txt": LOG,
            "data/train.jsonl": _lines(ROWS),
        },
        **{"state/aws/123456789012-us-east-1.jsonl": _lines([LEDGER])},
        **{f"run/{name}": content for name, content in run_files().items()},
    }
    readers = [*text_readers(), *model_readers(), Commands("commands", command_files, run_command)]
    return {reader.name: reader for reader in readers}
