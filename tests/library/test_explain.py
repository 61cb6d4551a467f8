"""Known causes: each matches its real lines, in all forms of logs, and no line of another cause."""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import string
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from micro_models import ROOT

from neuron_sum.cli import build
from neuron_sum.doctor import explain as explaining
from neuron_sum.doctor import log_lines
from neuron_sum.doctor.command import explain as command
from neuron_sum.doctor.explain import Explanation, explain
from neuron_sum.doctor.known_failures import FOLDER, SUBJECTS, Cause, known_failures
from neuron_sum.errors import DataError
from neuron_sum.recipes.loading import load_recipe
from sagemaker_jobs.aws.logs import known_cause

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
CAUSES = known_failures()
LINES = [(cause, example.line) for cause in CAUSES for example in cause.examples]
IDS = [f"{cause.name}-{number}" for number, (cause, _) in enumerate(LINES)]


def read(*lines: str) -> Explanation:
    return explain(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))


def names(log: str | bytes) -> list[str]:
    data = log.encode() if isinstance(log, str) else log
    return [finding.cause.name for finding in explain(io.BytesIO(data)).findings]


@pytest.mark.parametrize(("cause", "line"), LINES, ids=IDS)
def test_a_real_line_matches_its_cause_and_no_other(cause: Cause, line: str) -> None:
    told = read("Compiler status PASS", line, "epoch 1")
    assert [(finding.cause.name, finding.line, finding.times) for finding in told.findings] == [(cause.name, 2, 1)]


WRAPPED: dict[str, Callable[[str], str]] = {
    "aws logs tail": lambda line: f"2025-03-16T04:12:44.001000+00:00 run-2025/algo-1-1742098364 {line}",
    "syslog": lambda line: f"Mar 16 04:12:44 ip-10-0-0-1 python[812]: {line}",
    "compose": lambda line: f"algo-1-ab12c  | {line}",
    "torchrun": lambda line: f"[rank0]: {line}",
    "coloured": lambda line: f"\x1b[31m{line}\x1b[0m",
    "docker json-file": lambda line: json.dumps({"log": f"{line}\n", "stream": "stderr", "time": "2025-03-16"}),
    "get-log-events": lambda line: f'            "message": {json.dumps(line)},',
    "JSON traceback": lambda line: json.dumps({"level": "ERROR", "message": f"Traceback:\n{line}\nend"}),
    "JSON in JSON": lambda line: json.dumps({"log": json.dumps({"severity": "ERROR", "message": line})}),
    "CSV": lambda line: '1742098364001,"{}",algo-1'.format(line.replace('"', '""')),
}


@pytest.mark.parametrize("form", WRAPPED)
def test_every_cause_is_found_in_every_form_of_log(form: str) -> None:
    """In an array too long for one test each: the causes of all real lines, wrapped as other programs write them."""
    for cause, line in LINES:
        assert names(WRAPPED[form](line)) == [cause.name], line


KILLED = r"""
Killed
2025-03-16T04:12:44.001Z algo-1-ab12c Killed
2025-03-16T04:12:44.001000+00:00 AllTraffic/i-0ebe254fbdc09af06 Killed
2025-03-16T04:12:44 Killed
2025-03-16 04:12:44,001 - root - ERROR - Killed
[2025-03-16 04:12:44,001] [ERROR] Killed
ERROR:root:Killed
Mar 16 04:12:44 localhost python[812]: Killed
<165>1 2025-03-16T04:12:44.003Z host app 812 ID47 - Killed
<3>[18026.221140] Killed
[default0]:Killed
[1,mpirank:0,algo-1]<stdout>:Killed
(RayTrainWorker pid=35385, ip=10.0.0.1) Killed
trainer-1 | Killed
[pod/trainer-0/main] Killed
2025-03-16T04:12:44.001234567Z stderr F Killed
WARN  PyProcess W-80-model-stderr: Killed
2023-02-24T17:32:20,733 [INFO ] W-9000-llama-2-13b_1.0-stdout MODEL_LOG - Killed
Loading checkpoint shards:  57% 4/7 [00:37<00:28,  9.42s/it]Killed
E0325 20:57:27.620000 2606 site-packages/torch/distributed/elastic/multiprocessing/api.py:869] Killed
{"events": [{"timestamp": 1742098364001, "message": "Killed", "ingestionTime": 1742098364002}]}
{"log":"{\"level\":\"error\",\"message\":\"\\u001b[31mKilled\\u001b[0m\"}\n","stream":"stderr"}
time="2025-03-16T04:12:44Z" level=error msg="Killed"
"2025-03-16 04:12:44.001","Killed","neuron-sum/algo-1"
Killed,2025-03-16 04:12:44.001
EVENTS	1742098364123	Killed	1742098364001
| 1661392701632 | 2022-08-25T01:58:21,510 Killed | AllTraffic/i-0ebe254fbdc09af06 |
#12 45.12 Killed
03/16/2025 04:12:44 PM Killed
/entry.sh: line 3:    12 Killed                  python -m train
zsh: killed     python train.py
make: *** [Makefile:3: train] Killed
UnexpectedStatusException: Error for Training job x: Failed. Reason: AlgorithmError: , exit code: 137
torch.distributed.elastic.multiprocessing.api: [ERROR] failed (exitcode: -9) local_rank: 1 (pid: 812) of binary: python
  traceback : Signal 9 (SIGKILL) received by PID 812
""".strip().splitlines()


@pytest.mark.parametrize("line", KILLED)
def test_a_killed_process_is_known_behind_every_prefix(line: str) -> None:
    assert names(line) == ["process-killed"]


HARMLESS = r"""
2023-08-25 21:51:36.000433: INFO ||NCC_WRAPPER||: Compile cache path: /var/tmp/neuron-compile-cache
2023-Jul-07 13:56:06.0950 1358943:1359077 [0] init.cc:138 CCOM WARN OFI plugin initNet() failed is EFA enabled?
Compiler status PASS
2024-Oct-21 20:15:03.169055  7340:7340   INFO   NRT:nrt_init        Found neuron driver: 2.18
INFO ||NEURON_CACHE||: Current remaining items are 0, locked are 3, failed are 0, done are 4, total is 7
"SecondaryStatus": "Training",
algo-1 | loss 2.31 grad_norm 0.4
{'loss': 1.23, 'grad_norm': 0.3, 'learning_rate': 1e-05}
INFO PyProcess Python engine started.
fatal: something nobody has seen before failed with error code 9: killed by nobody
0 errors
exit code: 0
Process exited with exit code: 1
"OOMKilled": false,
{"dialogue": "Bob: he was Killed", "summary": "Killed"}
1,"Bob: who? Amy: nobody","Killed"
[16/03/2025, 04:12:44] Bob: Killed
Bob: I ran out of memory, then the process was killed. Amy: No space left in my head!
the summary: Killed
"Killed" is the title
Killed by a bear
A segmentation fault is a term of geology; read-only file systems and bus errors are not.
Some weights of T5ForConditionalGeneration were not initialized from the model checkpoint
huggingface/tokenizers: The current process just got forked, after parallelism has already been used.
Token indices sequence length is longer than the specified maximum sequence length for this model (1000 > 512).
ERROR: pip's dependency resolver does not currently take into account all the packages that are installed.
RuntimeWarning: numpy.dtype size changed, may indicate binary incompatibility. Expected 96, got 88
UserWarning: CUDA initialization: Found no NVIDIA driver on your system.
Could not load dynamic library 'libcudart.so.11.0'; dlerror: libcudart.so.11.0: cannot open shared object file
[W socket.cpp:401] [c10d] The server socket has failed to bind to [::]:29500 (errno: 97 - Address family not supported).
[W socket.cpp:697] [c10d] The client socket has failed to connect to [ip]:29500 (errno: 22 - Invalid argument).
'(ReadTimeoutError("HTTPSConnectionPool(host='huggingface.co', port=443): Read timed out. (read timeout=10)"))'
WARNING Connection pool is full, discarding connection: s3.amazonaws.com. Connection pool size: 10
requests.exceptions.HTTPError: 404 Client Error: Not Found for url: https://huggingface.co/x/y/resolve/main/z.json
""".strip().splitlines()


@pytest.mark.parametrize("line", HARMLESS)
def test_a_harmless_line_matches_nothing(line: str) -> None:
    assert names(line) == []


def test_noise_matches_nothing() -> None:
    assert read(*HARMLESS) == Explanation((), len(HARMLESS))
    noise = random.Random(0)
    lines = ["".join(noise.choices(string.printable, k=200)).replace("\n", " ") for _ in range(2000)]
    assert not read(*lines).findings
    assert explain(io.BytesIO(b"")) == Explanation((), 0)


NEIGHBOURS = {
    "RuntimeError: unable to write to file </torch_812_1954506624_3>: No space left on device (28)": "shared-memory",
    "OSError: [Errno 28] No space left on device: '/dev/shm/psm_1234'": "shared-memory",
    "OSError: [Errno 28] No space left on device": "disk-full",
    "OSError: [Errno 28] No space left on device: '/opt/ml/checkpoints/step-500/model.safetensors'": "disk-full",
    "inotify_add_watch(/data): No space left on device": "inotify-limit",
    "OSError: [Errno 122] Disk quota exceeded": "disk-full",
    'botocore.exceptions.ReadTimeoutError: Read timeout on endpoint URL: "https://b.s3.us-east-1.amazonaws.com/k"':
        "s3-timeout",
    'ReadTimeoutError: Read timeout on endpoint URL: "https://s3.eu-west-1.amazonaws.com/b/k?partNumber=3"':
        "s3-timeout",
    'Read timeout on endpoint URL: "https://runtime.sagemaker.us-east-1.amazonaws.com/endpoints/x/invocations"':
        "invoke-timeout",
    'Read timeout on endpoint URL: "https://api.sagemaker.us-east-1.amazonaws.com/"': "aws-timeout",
    'Read timeout on endpoint URL: "https://sts.amazonaws.com/"': "aws-timeout",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": "cuda-memory",
    "Out of memory: Killed process 812 (python)": "oom-killer",
    "RuntimeError: DataLoader worker (pid 12) is killed by signal: Killed. ": "dataloader-worker",
    "RuntimeError: DataLoader worker (pid 12) is killed by signal: Bus error. ": "shared-memory",
    "[F137] neuronx-cc was forcibly killed - This most commonly occurs due to insufficient system memory.":
        "compiler-killed",
    "RuntimeError: neuronx-cc failed with -9": "compiler-killed",
    "RuntimeError: neuronx-cc failed with 70": "compiler-failed",
    "An error occurred (ValidationException) when calling the CreateModel operation: Could not find model data at "
    "s3://sagemaker-us-east-1-111122223333/run/output/model.tar.gz.": "model-data-missing",
    "ERROR ENCD:encd_init_context [nec_dev 4] failed to init TOP_SP resources": "collectives-resources",
    "Received server error (0) from model with message \"Your invocation timed out while waiting for a response from "
    "container model.\"": "invoke-timeout",
    "Received server error (500) from primary with message \"CUDA out of memory. Tried to allocate 2 GiB\"":
        "cuda-memory",
    "An error occurred (403) when calling the HeadObject operation: Forbidden": "s3-denied",
    "An error occurred (404) when calling the HeadObject operation: Not Found": "s3-no-object",
    "SSLError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded (CERTIFICATE_VERIFY_FAILED)":
        "certificate",
}  # fmt: skip


@pytest.mark.parametrize("line", NEIGHBOURS)
def test_a_neighbouring_message_has_its_own_cause(line: str) -> None:
    assert names(line) == [NEIGHBOURS[line]]


ERROR_CODES = {
    "EARG": [1], "EBIR": [23], "EBVF": [30], "EHCA": [5], "EMOD": [25], "EOOM": [1, 2], "ESFH": [2], "ESMP": [2],
    "ESPP": [4, 47], "EUOC": [2], "EXSP": [1], "EXTP": [4],
    "EVRF": [1, *range(4, 8), 9, 10, 11, 13, *range(15, 20), 22, 29, 31, *range(35, 67)],
}  # fmt: skip
"""aws-neuron-sdk 81ce03ae, compiler/error-codes; also of SDK 2.33 (066), release notes (ESMP), public logs (029)."""


def test_every_error_code_of_the_compiler_has_one_cause() -> None:
    for code in (f"NCC_{stage}{number:03}" for stage, numbers in ERROR_CODES.items() for number in numbers):
        assert len(names(f"2026-08-17T01:02:03Z ERROR 812 [neuronx-cc]: [{code}] message")) == 1, code


def test_the_entries_are_complete() -> None:
    assert len(CAUSES) >= 100
    assert len({cause.name for cause in CAUSES}) == len(CAUSES)
    assert {path.stem for path in FOLDER.iterdir()} == set(SUBJECTS)
    for cause in CAUSES:
        assert cause.cause and cause.remedy and cause.source.startswith("https://")
        assert re.fullmatch(r"[a-z0-9-]+", cause.name)
        assert cause.examples and all(example.source.startswith("https://") for example in cause.examples)
        assert set(cause.gives_way_to) <= {other.name for other in CAUSES} - {cause.name}
        assert cause.symptom == bool(re.search(r"not (give|say|state)|not the reason|ended; this", cause.cause)) or (
            cause.name in {"process-killed", "segmentation-fault"}
        ), f"{cause.name}: a symptom says that the reason is elsewhere"


COMMAND = re.compile(r"`neuron-sum ([a-z]+(?: [a-z]+)?)")
KEY = re.compile(
    r"\b(?!model\.(?:safetensors|tar))((?:data|model|method|train|generate|compile|serve|evaluate)\.[a-z_]+(?:\.[a-z_]+)*)"
)


def test_remedies_name_commands_and_recipe_keys_that_exist() -> None:
    recipe = load_recipe("flan-t5-base-lora").model_dump()
    app: Any = typer.main.get_command(build())
    named = 0
    for cause in CAUSES:
        for words in COMMAND.findall(cause.remedy):
            group = app
            for word in words.split():
                if commands := getattr(group, "commands", None):
                    assert word in commands, f"{cause.name}: neuron-sum {words}"
                    group, named = commands[word], named + 1
        for key in KEY.findall(cause.remedy):
            value: Any = recipe
            for part in key.split("."):
                assert part in value, f"{cause.name}: {key}"
                value, named = value[part], named + 1
    assert named > 40


def test_several_causes_are_reported_in_order_and_counted() -> None:
    told = read("Killed", *HARMLESS, "exec format error", "x", "Killed", "No space left on device", "Killed")
    assert [(f.cause.name, f.line, f.times) for f in told.findings] == [
        ("process-killed", 1, 3),
        ("architecture", len(HARMLESS) + 2, 1),
        ("disk-full", len(HARMLESS) + 5, 1),
    ]
    both = read("No space left on device; then exec format error")
    assert [finding.cause.name for finding in both.findings] == ["disk-full", "architecture"]


def test_a_failed_job_is_explained_by_a_cause_and_only_otherwise_by_a_symptom() -> None:
    symptom = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"
    oom = "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert known_cause("AlgorithmError", ["a", oom, symptom]).name == "cuda-memory"  # type: ignore[union-attr]
    assert known_cause("AlgorithmError", [oom, "No space left on device"]).name == "disk-full"  # type: ignore[union-attr]
    assert known_cause("AlgorithmError", [symptom, "\ud800"]).name == "rank-failed"  # type: ignore[union-attr]
    assert known_cause("AlgorithmError", []) is None


def test_control_characters_do_not_reach_the_terminal() -> None:
    line = "\x1b]0;owned\x07\x1b[31mRuntimeError: neuronx-cc\x1b[0m failed\u202e with -9\x1b[2J\x00\tdone\r"
    [finding] = read(line).findings
    assert finding.text == "RuntimeError: neuronx-cc failed with -9\tdone"
    [quoted] = read(json.dumps({"message": f"{line} \x9b2J \u2066"})).findings
    assert quoted.text.replace("\t", "").isprintable() and "owned" not in quoted.text
    broken = explain(io.BytesIO(b"\xff\xfe\x80 No space left on device \x9b31m\n"))
    assert broken.findings[0].text.isprintable()


def test_the_message_in_a_json_line_is_quoted() -> None:
    [finding] = read(json.dumps({"log": "first\nOSError: [Errno 28] No space left on device\n"})).findings
    assert finding.text == "OSError: [Errno 28] No space left on device"


def test_a_long_line_is_quoted_in_part() -> None:
    [finding] = read("a" * 5000 + " No space left on device " + "b" * 5000).findings
    assert "No space left on device" in finding.text
    assert finding.text[0] == finding.text[-1] == "…"
    assert len(finding.text) <= explaining.QUOTE + 2


@pytest.mark.parametrize(
    "before", [0, 1, log_lines.CHUNK_BYTES - 10, log_lines.CHUNK_BYTES, 3 * log_lines.CHUNK_BYTES - 5]
)
def test_an_endless_line_is_read_in_pieces(before: int) -> None:
    log = b"first\n" + b"x" * before + b" No space left on device " + b"y" * 600_000 + b"\nexec format error"
    told = explain(io.BytesIO(log))
    assert [(f.cause.name, f.line, f.times) for f in told.findings] == [("disk-full", 2, 1), ("architecture", 3, 1)]
    assert told.lines == 3


@pytest.mark.parametrize("before", [0, log_lines.CHUNK_BYTES - 40, 2 * log_lines.CHUNK_BYTES])
def test_a_log_in_one_json_document_without_line_breaks_is_read(before: int) -> None:
    events = [{"timestamp": 1, "message": "y" * 100}] * (before // 132) + [{"timestamp": 2, "message": "x\nKilled\n"}]
    events += [{"timestamp": 3, "message": "z" * 1000}] * 600
    for separators in ((",", ":"), (", ", ": ")):
        assert names(json.dumps({"events": events}, separators=separators)) == ["process-killed"]


def test_a_csv_field_with_line_breaks_is_read() -> None:
    header = "@timestamp,@message,@logStream\n"
    assert names(header + '2025-03-16 04:12:44.001,"Traceback:\n""x""\nKilled",algo-1\n') == ["process-killed"]
    assert names('timestamp,message\n1742098364001,"x\nKilled"\n') == ["process-killed"]
    assert names('id,summary\n1,"x\nKilled"\n') == []


LOG = "first\nOSError: [Errno 28] No space left on device — voll\nexec format error\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"])
def test_every_encoding_is_read(encoding: str) -> None:
    told = explain(io.BytesIO(LOG.encode(encoding, errors="replace")))
    assert [(f.cause.name, f.line) for f in told.findings] == [("disk-full", 2), ("architecture", 3)]
    assert told.lines == 3


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_log_is_read(compress: Callable[[bytes], bytes]) -> None:
    told = explain(io.BytesIO(compress(LOG.encode()) + compress(LOG.encode("utf-8"))))
    assert [(f.cause.name, f.line, f.times) for f in told.findings] == [("disk-full", 2, 2), ("architecture", 3, 2)]
    assert names(compress(LOG.encode("utf-16"))) == ["disk-full", "architecture"]


class Endless(io.RawIOBase):
    """Sixty-four million bytes without a line break, generated as they are read."""

    def __init__(self) -> None:
        self.left = 64_000_000

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.left)
        buffer[:count] = b"z" * count
        self.left -= count
        return count


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_does_not_grow_with_the_log(compressed: bool) -> None:
    explain(io.BytesIO(b"x"))
    log = io.BytesIO(gzip.compress(b"z" * 64_000_000, 1)) if compressed else io.BufferedReader(Endless())
    tracemalloc.start()
    assert explain(log) == Explanation((), 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000


def test_every_mark_is_literal_text_of_its_pattern_outside_alternatives() -> None:
    for cause in CAUSES:
        for item in cause.patterns:
            mark, pattern = item.mark, item.regex.pattern
            assert len(mark) >= 6, f"{pattern}: a mark this short makes reading slow"
            assert mark == mark.lower() and mark.isascii() and "\\" not in mark
            for line in (example.line for example in cause.examples if item.regex.search(example.line)):
                assert mark in line.lower(), (mark, pattern)


def test_no_pattern_backtracks_on_a_hostile_line() -> None:
    """Repeated beginnings of every pattern: a regular expression that backtracks would not finish here."""
    for cause in CAUSES:
        for pattern in cause.patterns:
            explain(io.BytesIO(pattern.mark.encode() * 1000))
    for prefix in ("2025-03-16T04:12:44Z ", "[rank0]: ", "a - ", '{"message":"', '\\"', "x" * 50 + "[", "1,", '"'):
        explain(io.BytesIO(prefix.encode() * 20_000 + b"Killed"))


def test_random_bytes_around_known_lines_never_crash() -> None:
    noise = random.Random(1)
    pool = [line.encode() for _, line in LINES] + [wrap(LINES[0][1]).encode() for wrap in WRAPPED.values()]
    for _ in range(300):
        data = bytearray(b"\n".join(noise.choices(pool, k=4)))
        for _ in range(noise.randrange(30)):
            data[noise.randrange(len(data))] = noise.randrange(256)
        for finding in explain(io.BytesIO(bytes(data[noise.randrange(40) :]))).findings:
            assert finding.text.replace("\t", "").isprintable()


def test_the_command_prints_tables_and_json(neuron_sum: CommandLine, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("starting\nRuntimeError: neuronx-cc failed with -9\n")
    made = neuron_sum("explain", str(log))
    assert made.returncode == 0
    assert made.stdout.startswith("compiler-killed: line 2\n  RuntimeError: neuronx-cc failed with -9\ncause:  ")
    assert "source: https://github.com/aws-neuron/aws-neuron-samples/issues/10" in made.stdout
    piped = json.loads(neuron_sum("explain", "-", "--json", stdin=log.read_text()).stdout)
    assert piped["known"] and piped["lines"] == 2
    assert piped["causes"][0].keys() == {"name", "line", "text", "times", "cause", "remedy", "source"}


def test_a_log_without_a_known_cause_is_answered_unknown(neuron_sum: CommandLine) -> None:
    made = neuron_sum("explain", stdin="nothing\nto see\n")
    assert made.returncode == 0
    assert made.stdout.startswith(f"unknown: none of {len(CAUSES)} known causes is in these 2 lines\n")
    assert json.loads(neuron_sum("explain", "--json", stdin="x").stdout) == {
        "known": False,
        "lines": 1,
        "causes": [],
    }


@pytest.mark.parametrize(
    ("name", "reason", "hint"),
    [
        ("nothing.log", "nothing.log cannot be read: No such file or directory", ""),
        (".", ". is a folder, not a log", "name a file in it: `neuron-sum explain ./FILE`"),
        ("job.log.gz", "end-of-stream marker", "`gzip -dc FILE | neuron-sum explain`"),
        ("wrong.log.gz", "wrong.log.gz cannot be read", "gzip"),
        ("logs.zip", "logs.zip cannot be read: it is a zip archive", "name a text file"),
        ("logs.zst", "it is compressed with zstd", "name a text file"),
        ("a" * 5000, "cannot be read: File name too long", ""),
        ("x\0y", "cannot be read", ""),
        ("\ud800", "cannot be read", ""),
    ],
)
def test_a_log_that_cannot_be_read_is_an_error(
    name: str, reason: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.log.gz").write_bytes(gzip.compress(LOG.encode() * 1000)[:-20])
    Path("wrong.log.gz").write_bytes(b"\x1f\x8b" + LOG.encode())
    Path("logs.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    Path("logs.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(DataError) as caught:
        command(name)
    assert reason in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_closed_standard_input_is_an_error() -> None:
    code = "import sys; from neuron_sum.cli import main; sys.argv = ['neuron-sum', 'explain']; main()"
    made = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" <&-', sys.executable, code], capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 4
    assert "standard input is closed" in made.stderr


def test_the_document_names_every_cause() -> None:
    text = (ROOT / "docs" / "known-failures.md").read_text()
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "list_failures.py")], capture_output=True, text=True, check=True
    )
    assert text == made.stdout, "run `python tools/list_failures.py > docs/known-failures.md`"
    assert re.findall(r"^\*\*`([a-z0-9-]+)`", text, re.MULTILINE) == [cause.name for cause in CAUSES]


def test_explain_imports_nothing_heavy() -> None:
    code = (
        "import io, sys\n"
        "from neuron_sum.doctor import explain\n"
        "explain.explain(io.BytesIO(b'x'))\n"
        "print('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
