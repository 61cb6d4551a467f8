"""Attacks on a running `neuron-sum serve`: what a web page, a stranger on the port and a greedy client can try.

    neuron-sum serve ARTIFACT --port 8080          prints the token's file
    python benchmarks/attack.py http://127.0.0.1:8080 TOKEN_FILE [--only NAME] [--seconds 20]

Prints each attack with the number of requests and what went wrong, and exits with 1 if anything did. Everything is sent
to 127.0.0.1. A listener on another port notices if the server fetches anything. The latency of other clients during an
attack depends on the model's speed; give --seconds a few times the slowest answer.
"""

import argparse
import functools
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from neuron_sum import console
from serving import djl

DIALOGUE = "#Person1#: Are you coming tonight?\n#Person2#: Yes, at eight."
EXPANDING = "\ufdfa"
"""One character that NFKC makes 18 of (Unicode 15, UnicodeData.txt)."""
TIMEOUT_S = 60.0
CLIENTS, ATTACKERS = 4, 5
PAUSE_S = 1.0
"""Between two requests of an attacker."""
SLOWEST = 2.0
"""The 99th percentile of other clients during an attack, relative to their usual one."""


@dataclass(frozen=True)
class Target:
    """The server that is attacked.

    Attributes:
        url: Its address on 127.0.0.1.
        token: The token of its owner.
        model: The name of a model that it serves.
    """

    url: str
    token: str
    model: str

    @property
    def port(self) -> int:
        """The port of `url`."""
        return int(self.url.rpartition(":")[2])

    @property
    def owner(self) -> dict[str, str]:
        """The headers that the owner of the server sends."""
        return {"Authorization": f"Bearer {self.token}"}

    def state(self) -> dict[str, Any]:
        """What a successful attack would change: the models, their workers and adapters."""
        with httpx.Client(base_url=self.url, headers=self.owner, timeout=TIMEOUT_S) as http:
            models = http.get("/models").raise_for_status().json()["models"]
            adapters = http.get(f"/models/{self.model}/adapters")
            [described] = http.get(f"/models/{self.model}").raise_for_status().json()
        workers = [group["device"]["deviceType"] for each in described["models"] for group in each["workerGroups"]]
        return {"models": models, "adapters": adapters.text, "workers": workers}


@dataclass
class Finding:
    """What an attack showed.

    Attributes:
        requests: How many were sent.
        faults: What went wrong; empty if the server withstood.
        note: A measurement.
    """

    requests: int = 0
    faults: list[str] = field(default_factory=list)
    note: str = ""

    def expect(self, answer: httpx.Response, allowed: Sequence[int], what: str) -> None:
        """Counts an answer, and notes a status that is not allowed."""
        self.requests += 1
        if answer.status_code not in allowed:
            self.faults.append(f"{what}: {answer.status_code}")


def routes(model: str) -> list[tuple[str, str]]:
    """Every route of every request handler of DJL Serving 0.36.0, and of our plugin."""
    return management(model) + _pairs(f"""
        GET /
        OPTIONS /
        GET /playground
        GET /playground/models
        GET /ping
        GET /server/metrics
        POST /invocations
        POST /predictions/{model}
        POST /v1/chat/completions
        POST /models/{model}/invoke
    """)


def management(model: str) -> list[tuple[str, str]]:
    """The routes of DJL's handlers for management, adapters and clusters: they list or change what is served."""
    source = "http://127.0.0.1:9/x.tar.gz"
    return _pairs(f"""
        GET /models
        GET /models/{model}
        POST /models?url={source}&model_name=x&engine=Python
        PUT /models/{model}?min_worker=3&max_worker=3
        DELETE /models/{model}
        DELETE /models/{model}/invoke?x
        PUT /models/{model}/invoke?min_worker=3
        GET /workflows
        POST /workflows?url={source}
        POST /workflows?template=adapter&adapter=x
        GET /workflows/{model}
        PUT /workflows/{model}?min_worker=3
        DELETE /workflows/{model}
        GET /server/logging?level=debug
        POST /server/logging
        PUT /server/metrics
        GET /adapters
        POST /adapters?name=x&src=/
        DELETE /adapters/x
        GET /models/{model}/adapters
        GET /models/{model}/adapters/default
        POST /models/{model}/adapters?name=x&src=/
        POST /models/{model}/adapters/x/update?src=/
        DELETE /models/{model}/adapters/default
        GET /cluster/sshpublickey
        GET /cluster/models
        GET /cluster/status?message=x
    """)


def _pairs(lines: str) -> list[tuple[str, str]]:
    return [(method, path) for method, path in (line.split() for line in lines.strip().splitlines())]


def foreign_host(target: Target) -> Finding:
    """DNS rebinding: a page's own name that leads to 127.0.0.1."""
    named = f"""evil.example evil.example:{target.port} 127.0.0.1.evil.example localhost.evil.example 0.0.0.0
        [::ffff:127.0.0.1] 127.0.0.1@evil.example evil.example#127.0.0.1 2130706433 localhost."""
    names = [*named.split(), ""]
    return _everywhere(target, [{"Host": name} for name in names])


def foreign_origin(target: Target) -> Finding:
    """A web page of another site, another port or a sandbox."""
    own = f"127.0.0.1:{target.port}"
    return _everywhere(
        target,
        [
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "file://"},
            {"Origin": f"http://localhost:{target.port}"},
            {"Origin": f"http://{own}.evil.example"},
            {"Origin": ""},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "x"},
            {"Origin": f"http://{own}", "Sec-Fetch-Site": "cross-site"},
        ],
    )


def _everywhere(target: Target, attempts: Sequence[dict[str, str]]) -> Finding:
    finding, before = Finding(), target.state()
    with httpx.Client(base_url=target.url, timeout=TIMEOUT_S, trust_env=False) as http:
        for headers in attempts:
            for method, path in routes(target.model):
                # With the token: a browser that had it must be rejected all the same.
                answer = http.request(method, path, headers={**target.owner, **headers})
                finding.expect(answer, [403], f"{headers} {method} {path}")
    if target.state() != before:
        finding.faults.append("the server was changed")
    return finding


def no_token(target: Target) -> Finding:
    """Orders without the token, or with another one."""
    finding, before = Finding(), target.state()
    tokens = [
        {},
        *(
            {"Authorization": value}
            for value in (
                target.token,
                f"Basic {target.token}",
                "Bearer",
                f"Bearer {target.token[:-1]}",
                f"Bearer {target.token}x",
                f"bearer  {target.token}",
            )
        ),
    ]
    with listener() as (url, fetched), httpx.Client(base_url=target.url, timeout=TIMEOUT_S, trust_env=False) as http:
        for headers in tokens:
            for method, path in management(target.model):
                answer = http.request(method, path.replace("http://127.0.0.1:9", url), headers=headers)
                finding.expect(answer, [401, 403], f"{headers} {method} {path}")
            for content_type in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
                body = json.dumps({"url": f"{url}/x.tar.gz", "model_name": "x", "engine": "Python"})
                answer = http.post("/models", content=body, headers={"content-type": content_type, **headers})
                finding.expect(answer, [401], f"{headers} POST /models as {content_type}")
        if fetched:
            finding.faults.append(f"the server fetched {fetched}")
    if target.state() != before:
        finding.faults.append("the server was changed")
    return finding


def other_spellings(target: Target) -> Finding:
    """Paths that a check and a handler could read differently; none may do more than the plain one."""
    finding, before = Finding(), target.state()
    model = target.model
    targets = rf"""
        //models /./models /ping/../models /%6dodels /models%2f /models;x=1 /MODELS /models%00 models * ? /models#x
        http://127.0.0.1:{target.port}/models /models/ //workflows /%77orkflows /models/x%2f{model} /..;/models
        /models/{model}/invoke/ /models/{model}/%69nvoke /models/{model}/invoke/../../x /models/{model}/adapters/
        /server//logging /server/logging/ /server/%6cogging /adapters/../models /cluster/ /console /ping;/models
        /playground/../models /predictions/../models /invocations/../../models /v1/../models /models?/invoke
        /models/?/invoke /models/{model}?/invoke /workflows?/invoke \models /models\ """.split()
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"):
        for path in targets:
            head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\nContent-Length: 0\r\n\r\n"
            status = _statuses(target, head.encode())[:1]
            finding.requests += 1
            if status and status[0] < 400:
                finding.faults.append(f"{method} {path}: {status[0]}")
    if target.state() != before:
        finding.faults.append("the server was changed")
    return finding


def foreign_models(target: Target) -> Finding:
    """The owner's token, but a model that is not a folder below the model folders."""
    finding, before = Finding(), target.state()
    with (
        listener() as (url, fetched),
        tempfile.TemporaryDirectory(dir=Path.home()) as name,
        httpx.Client(base_url=target.url, headers=target.owner, timeout=TIMEOUT_S, trust_env=False) as http,
    ):
        folder = Path(name)
        (folder / "serving.properties").write_text("engine=Python\noption.entryPoint=evil.py\n")
        (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).touch()\n")
        (folder / "workflow.json").write_text(
            json.dumps({"models": {"m": f"{url}/x.tar.gz"}, "workflow": {"out": ["m", "in"]}})
        )
        sources = f"""
            {url}/x.tar.gz {url}/x.zip s3://bucket/x/ djl://ai.djl/resnet jar:file:{folder}/x.jar!/ {folder} {folder}/
            file:{folder} {folder.as_uri()} {folder.as_uri()}/workflow.json file://evil.example{folder} / /etc file:///
            file:///tmp/..{folder} djl+file:{folder} file:{folder}?model_name=x ~ relative/folder file:%00""".split()
        sources += ["", "\x00"]
        for source in sources:
            for body in ({"url": source, "model_name": "x"}, {"url": source, "model_name": "../x"}, {"url": source}):
                answer = http.post("/models", json=body)
                finding.expect(answer, [400], f"POST /models {body}")
                answer = http.post("/models", params=body)
                finding.expect(answer, [400], f"POST /models {body} as a query")
                finding.expect(http.post("/workflows", params=body), [403], f"POST /workflows {body}")
        for content in (b"", b"null", b"[]", b"{", b'{"url": {}}', b'{"url": null, "model_name": 1}'):
            answer = http.post("/models", content=content, headers={"content-type": "application/json"})
            finding.expect(answer, [400], f"POST /models {content!r}")
        if fetched:
            finding.faults.append(f"the server fetched {fetched}")
        if (folder / "ran").exists():
            finding.faults.append("the server ran a stranger's code")
    if target.state() != before:
        finding.faults.append("the server was changed")
    return finding


def adapter_names(target: Target) -> Finding:
    """Names that are paths, log lines or metrics; sources that are pipes or devices."""
    finding, before = Finding(), target.state()
    names = [
        "a/b",
        "../x",
        "..",
        ".",
        "a b",
        "a\nb",
        "x" * 65,
        "",
        "base",
        "<b>",
        "a%2fb",
        "ä",
        '"',
        "a\x00b",
        "a,b{c}",
    ]
    with (
        httpx.Client(base_url=target.url, headers=target.owner, timeout=TIMEOUT_S, trust_env=False) as http,
        tempfile.TemporaryDirectory() as folder,
    ):
        adapters = f"/models/{target.model}/adapters"
        for name in names:
            answer = http.post(adapters, params={"name": name, "src": folder})
            finding.expect(answer, [400], f"registering {name!r}")
            body = {"inputs": DIALOGUE, "parameters": {"adapter": name}}
            allowed = [200] if name == "base" else [404, 422]
            finding.expect(http.post("/invocations", json=body), allowed, f"asking for {name!r}")
        os.mkfifo(Path(folder) / "adapter_config.json")
        for source in (folder, "/dev/zero", "/proc/self", "http://127.0.0.1:9/", "\x00", "x" * 5000):
            answer = http.post(adapters, params={"name": "fine", "src": source})
            finding.expect(answer, [400, 422], f"registering from {source[:40]!r}")
    if target.state() != before:
        finding.faults.append("the server was changed")
    return finding


def pipelining(target: Target) -> Finding:
    """Requests that do not wait for answers; these must have the requests' order, and each its own text."""
    finding = Finding()
    texts = [f"#Person1#: Number {number}. {'Please come. ' * (number % 7)}\n#Person2#: Yes." for number in range(8)]
    expected = [_ask(target, text).json()[0]["summary_text"] for text in texts]
    lengths = [_ask(target, text).json()[0]["input_tokens"] for text in texts]
    for start in range(20):
        order = [(start * 3 + step * 5) % len(texts) for step in range(6)]
        parts = [
            b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" if number % 3 == 2 else _invocation(target, texts[number])
            for number in order
        ]
        bodies = _bodies(target, b"".join(parts), len(parts))
        finding.requests += len(parts)
        for number, body in zip(order, bodies, strict=False):
            answer = json.loads(body)
            if number % 3 == 2:
                right = isinstance(answer, dict)
            else:
                right = isinstance(answer, list) and (answer[0]["summary_text"], answer[0]["input_tokens"]) == (
                    expected[number],
                    lengths[number],
                )
            if not right:
                finding.faults.append(f"batch {start}: the answer to text {number} is that of another request")
        if len(bodies) != len(parts):
            finding.faults.append(f"batch {start}: {len(bodies)} of {len(parts)} answers")
    return finding


def smuggling(target: Target) -> Finding:
    """Messages whose length two servers read differently: the request that is hidden in them must not be answered."""
    finding = Finding()
    hidden = f"DELETE /models/{target.model} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    head = "POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n"
    before = target.state()
    for headers, body in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + hidden),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "hello" + hidden),
        ("Content-Length: +5\r\n", "hello" + hidden),
        ("Content-Length: -1\r\n", hidden),
        ("Content-Length: 5, 5\r\n", "hello" + hidden),
        ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n" + hidden),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n" + hidden),
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n" + hidden),
        ("Transfer-Encoding: chunked\r\n", "5;x=\n\r\nhello\r\n0\r\n\r\n" + hidden),
        ("Transfer-Encoding: chunked\r\n", "FFFFFFFFFFFFFFFFF\r\n" + hidden),
        ("Host: evil.example\r\nContent-Length: 0\r\n", hidden),
        ("X: y\rDELETE /models HTTP/1.1\r\n", hidden),
    ]:
        statuses = _statuses(target, (head + headers + "\r\n" + body).encode())
        finding.requests += 1
        if any(status < 400 for status in statuses[1:]):
            finding.faults.append(f"{headers!r}: {statuses}")
    if target.state() != before:
        finding.faults.append("the server was changed")
    return finding


def odd_bodies(target: Target) -> Finding:
    """Bodies that are costly to read; each must be refused in its form."""
    finding = Finding()
    bodies = [
        "[" * 100_000,
        '{"inputs": ' * 50_000,
        '{"inputs": "x", "parameters": {"num_beams": %s}}' % ("9" * 50_000),
        '{"inputs": "\\ud800"}',
        json.dumps({"inputs": ["x"] * 100_000}),
        json.dumps({"inputs": "x" * 5_000_000}),
        json.dumps({"inputs": [EXPANDING * 100_000] * 10}),
        '{"inputs": "x", "inputs": "y", "z": 1}',
        "\x00" * 1000,
    ]
    with httpx.Client(base_url=target.url, timeout=TIMEOUT_S, trust_env=False) as http:
        for body in bodies:
            answer = http.post("/invocations", content=body.encode(), headers={"content-type": "application/json"})
            finding.expect(answer, [400, 413, 422], body[:40])
            if "error" not in answer.text:
                finding.faults.append(f"{body[:40]}: {answer.text[:80]}")
    return finding


def expanding_text(target: Target, seconds: float, characters: int) -> Finding:
    """Requests whose texts grow when they are tokenized, while other clients ask for summaries.

    Args:
        target: The server.
        seconds: How long the other clients are measured, before and during the attack.
        characters: Of each of the 10 texts of a request.
    """
    finding = Finding()
    usual = _latencies(target, seconds, finding)
    # In a process of its own, so that it does not hold up the clients that are measured.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        attack = process.submit(_flood, target.url, characters, seconds + 2)
        time.sleep(2)
        attacked = _latencies(target, seconds, finding)
        statuses = attack.result()
    refused = 200 not in statuses  # attackers that are answered are clients like the others, and take their share
    finding.requests += sum(statuses.values())
    before, during = (float(np.percentile(each, 99)) for each in (usual, attacked))
    finding.note = (
        f"p99 of {CLIENTS} other clients {before * 1e3:.0f} ms, during the attack {during * 1e3:.0f} ms "
        f"({during / before:.2f} times); {ATTACKERS} attackers saw {statuses}"
    )
    if refused and during >= SLOWEST * before:
        finding.faults.append(f"other clients waited {during / before:.1f} times as long")
    return finding


def _flood(url: str, characters: int, seconds: float) -> dict[int, int]:
    """How often several attackers saw each status; all send at once, pause, and send again."""
    body = json.dumps({"inputs": [EXPANDING * characters] * 10}).encode()
    end = time.monotonic() + seconds

    def attacker(_: int) -> list[int]:
        statuses = []
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers={"content-type": "application/json"}) as http:
            while time.monotonic() < end:
                statuses.append(http.post(f"{url}/invocations", content=body).status_code)
                time.sleep(PAUSE_S)
        return statuses

    with ThreadPoolExecutor(ATTACKERS) as attackers:
        return dict(Counter(status for statuses in attackers.map(attacker, range(ATTACKERS)) for status in statuses))


def _latencies(target: Target, seconds: float, finding: Finding) -> list[float]:
    """Seconds of every answer that a few clients get, one request after another each."""
    end = time.monotonic() + seconds

    def client(_: int) -> list[float]:
        taken = []
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
            while time.monotonic() < end:
                started = time.monotonic()
                answer = http.post(f"{target.url}/invocations", json={"inputs": DIALOGUE})
                taken.append(time.monotonic() - started)
                finding.expect(answer, [200], "a dialogue of another client")
        return taken

    with ThreadPoolExecutor(CLIENTS) as clients:
        return [latency for taken in clients.map(client, range(CLIENTS)) for latency in taken]


ATTACKS: dict[str, Callable[[Target], Finding]] = {
    "foreign Host": foreign_host,
    "foreign Origin": foreign_origin,
    "no token": no_token,
    "other spellings of a path": other_spellings,
    "models from elsewhere": foreign_models,
    "adapter names and sources": adapter_names,
    "pipelining": pipelining,
    "request smuggling": smuggling,
    "costly bodies": odd_bodies,
}
TIMED: dict[str, int] = {"text that expands": 100_000, "text that expands, within the limits": 49_000}
"""Attacks on the latency of others, and the characters of each text."""


@contextmanager
def listener(page: str = "") -> Iterator[tuple[str, list[str]]]:
    """A foreign web server on 127.0.0.1, with a page at /; its URL, and the other paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if page and self.path == "/":
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page.encode())
                return
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def _ask(target: Target, text: str) -> httpx.Response:
    url = f"{target.url}/invocations"
    return httpx.post(url, json={"inputs": text}, timeout=TIMEOUT_S, trust_env=False).raise_for_status()


def _invocation(target: Target, text: str) -> bytes:
    body = json.dumps({"inputs": text}).encode()
    head = f"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _bodies(target: Target, sent: bytes, count: int) -> list[str]:
    """The bodies of up to `count` answers on one connection."""
    bodies = []
    with socket.create_connection(("127.0.0.1", target.port), TIMEOUT_S) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as stream:
            while len(bodies) < count and stream.readline():
                length = 0
                while line := stream.readline().strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                bodies.append(stream.read(length).decode())
    return bodies


def _statuses(target: Target, sent: bytes) -> list[int]:
    """The statuses of all answers on one connection, until it is closed or quiet."""
    received = b""
    with socket.create_connection(("127.0.0.1", target.port), TIMEOUT_S) as connection:
        try:
            connection.sendall(sent)
            connection.settimeout(TIMEOUT_S)
            while piece := connection.recv(1 << 16):
                received += piece
                connection.settimeout(0.3)
        except (TimeoutError, ConnectionError):
            pass
    return [int(line.split()[1]) for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.")]


def target_of(url: str, token_file: Path) -> Target:
    """The server at an address, with the first of its models."""
    token = token_file.read_text(encoding="utf-8")
    answer = httpx.get(
        f"{url}/models", headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S, trust_env=False
    )
    return Target(url, token, answer.raise_for_status().json()["models"][0]["modelName"])


def main() -> None:
    """Runs the attacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("token_file", type=Path)
    parser.add_argument("--only", choices=[*ATTACKS, *TIMED])
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    target = target_of(options.url.rstrip("/"), options.token_file)
    attacks = dict(ATTACKS)
    for name, characters in TIMED.items():
        attacks[name] = functools.partial(expanding_text, seconds=options.seconds, characters=characters)
    table = console.table("attack", "requests", "faults", "measured", title=f"DJL Serving {djl.VERSION}")
    failed = False
    for name, attack in attacks.items():
        if options.only in (None, name):
            finding = attack(target)
            failed |= bool(finding.faults)
            table.add_row(name, str(finding.requests), "; ".join(finding.faults[:3]) or "none", finding.note)
            console.note(f"{name}: {finding.requests} requests, {len(finding.faults)} faults {finding.note}")
    console.emit({}, table)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
