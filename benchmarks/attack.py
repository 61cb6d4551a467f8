"""Attacks on a running `neuron-sum serve` by a web page, an unauthorized client, or an overloading client.

    neuron-sum serve ARTIFACT --port 8080          prints the name of the token file
    python -m benchmarks.attack http://127.0.0.1:8080 TOKEN_FILE [--only NAME] [--seconds 20]

Prints the number of requests and the faults of each attack, and exits with 1 if there are faults. All requests go to
127.0.0.1. A listener on another port records whether the server fetches anything. The latency of other clients during
an attack depends on the model's speed; set --seconds to a few times the slowest answer.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.attack_target import TIMEOUT_S, Target, listener, management_routes, routes
from neuron_sum import console
from serving import djl

DIALOGUE = "#Person1#: Are you coming tonight?\n#Person2#: Yes, at eight."
EXPANDING = "\ufdfa"
"""One character that NFKC expands to 18 characters (Unicode 15, UnicodeData.txt)."""
CLIENTS, ATTACKERS = 4, 5
PAUSE_S = 1.0
"""Seconds between two requests of an attacker."""
MAX_SLOWDOWN = 2.0
"""Limit for the other clients' 99th percentile during an attack, relative to the one before it."""


@dataclass
class Finding:
    """The result of an attack.

    Attributes:
        requests: Number of sent requests.
        faults: Descriptions of the faults; empty if the attack failed.
        note: A measurement.
    """

    requests: int = 0
    faults: list[str] = field(default_factory=list)
    note: str = ""

    def expect(self, answer: httpx.Response, allowed: Sequence[int], request: str) -> None:
        """Count an answer, and record a status that is not allowed."""
        self.requests += 1
        if answer.status_code not in allowed:
            self.faults.append(f"{request}: {answer.status_code}")

    def expect_unchanged(self, target: Target, before: dict[str, Any]) -> None:
        """Record a difference of the server's state."""
        if (after := target.state()) != before:
            self.faults.append(f"the server was changed: {before} became {after}")


def foreign_host(target: Target) -> Finding:
    """DNS rebinding: a foreign host name that resolves to 127.0.0.1."""
    hosts = f"""evil.example evil.example:{target.port} 127.0.0.1.evil.example localhost.evil.example 0.0.0.0
        [::ffff:127.0.0.1] 127.0.0.1@evil.example evil.example#127.0.0.1 2130706433 localhost."""
    names = [*hosts.split(), ""]
    return _on_every_route(target, [{"Host": name} for name in names])


def foreign_origin(target: Target) -> Finding:
    """A web page of another site or port, or in a sandbox."""
    host = f"127.0.0.1:{target.port}"
    return _on_every_route(
        target,
        [
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "file://"},
            {"Origin": f"http://localhost:{target.port}"},
            {"Origin": f"http://{host}.evil.example"},
            {"Origin": ""},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "x"},
            {"Origin": f"http://{host}", "Sec-Fetch-Site": "cross-site"},
        ],
    )


def _on_every_route(target: Target, attempts: Sequence[dict[str, str]]) -> Finding:
    finding, before = Finding(), target.state()
    with httpx.Client(base_url=target.url, timeout=TIMEOUT_S, trust_env=False) as http:
        for headers in attempts:
            for method, path in routes(target.model):
                # With the token: a browser that has it must also be rejected.
                answer = http.request(method, path, headers={**target.owner, **headers})
                finding.expect(answer, [403], f"{headers} {method} {path}")
    finding.expect_unchanged(target, before)
    return finding


def no_token(target: Target) -> Finding:
    """Management requests without the token, or with a wrong one."""
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
            for method, path in management_routes(target.model):
                answer = http.request(method, path.replace("http://127.0.0.1:9", url), headers=headers)
                finding.expect(answer, [401, 403], f"{headers} {method} {path}")
            for content_type in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
                body = json.dumps({"url": f"{url}/x.tar.gz", "model_name": "x", "engine": "Python"})
                answer = http.post("/models", content=body, headers={"content-type": content_type, **headers})
                finding.expect(answer, [401], f"{headers} POST /models as {content_type}")
        if fetched:
            finding.faults.append(f"the server fetched {fetched}")
    finding.expect_unchanged(target, before)
    return finding


def other_spellings(target: Target) -> Finding:
    """Paths that the access check and a handler could interpret differently; all must be refused."""
    finding, before = Finding(), target.state()
    model = target.model
    targets = rf"""
        //models /./models /ping/../models /%6dodels /models%2f /models;x=1 /MODELS /models%00 models * ? /models#x
        http://127.0.0.1:{target.port}/models /models/ //workflows /%77orkflows /models/x%2f{model} /..;/models
        /models/{model}/invoke/ /models/{model}/%69nvoke /models/{model}/invoke/../../x /models/{model}/adapters/
        /server//logging /server/logging/ /server/%6cogging /adapters/../models /cluster/ /console /ping;/models
        /playground/../models /predictions/../models /invocations/../../models /v1/../models /models?/invoke
        /models/?/invoke /models/{model}?/invoke /workflows?/invoke \models /models\ /models/#/invoke
        /models/{model}#/invoke /models/{model}%2Fadapters%2Fdefault /models/{model}%2Fadapters%2Fdefault/invoke?src=/
        /models/{model}%2fadapters%2fdefault/invoke /models/{model}%23/invoke /models/%3f/invoke
        /models//invoke """.split()
    body = json.dumps({"url": "/tmp", "model_name": "x", "min_worker": 9})
    headers = f"Host: 127.0.0.1:{target.port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"):
        for path in targets:
            status = target.statuses(f"{method} {path} HTTP/1.1\r\n{headers}\r\n{body}".encode())[:1]
            finding.requests += 1
            if status and status[0] < 400:
                finding.faults.append(f"{method} {path}: {status[0]}")
    finding.expect_unchanged(target, before)
    return finding


def foreign_models(target: Target) -> Finding:
    """Models that are not folders below the model folders, requested with the owner's token."""
    finding, before = Finding(), target.state()
    with (
        listener() as (url, fetched),
        tempfile.TemporaryDirectory() as name,  # next to the model folders
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
            {folder.parent.as_uri()}/x/../{folder.name} djl+file:{folder} file:{folder}?model_name=x
            ~ relative/folder""".split()
        sources += ["file:%00", "", "\x00"]
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
            finding.faults.append("the server ran foreign code")
    finding.expect_unchanged(target, before)
    return finding


def adapter_names(target: Target) -> Finding:
    """Adapter names that are paths, log lines or metrics, and sources that are pipes or devices."""
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
            finding.expect(http.post("/invocations", json=body), allowed, f"requesting {name!r}")
        os.mkfifo(Path(folder) / "adapter_config.json")
        for source in (folder, "/dev/zero", "/proc/self", "http://127.0.0.1:9/", "\x00", "x" * 5000):
            answer = http.post(adapters, params={"name": "fine", "src": source})
            finding.expect(answer, [400, 422], f"registering from {source[:40]!r}")
    finding.expect_unchanged(target, before)
    return finding


def pipelining(target: Target) -> Finding:
    """Requests that do not wait for answers; the answers must have the requests' order and contents."""
    finding = Finding()
    texts = [f"#Person1#: Number {number}. {'Please come. ' * (number % 7)}\n#Person2#: Yes." for number in range(8)]
    expected = [target.summarize(text) for text in texts]
    expecting = target.invocation(texts[0]).replace(b"\r\n", b"\r\nExpect: 100-continue\r\n", 1)
    ping = b"HEAD /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    statuses = target.statuses(expecting + ping + target.invocation(texts[1]), silence_s=10)
    finding.requests += 3
    if statuses[:3] != [100, 200, 200] and statuses[0] != 417:
        finding.faults.append(f"after Expect: 100-continue: {statuses}")
    for start in range(20):
        order = [(start * 3 + step * 5) % len(texts) for step in range(6)]
        parts = [
            b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" if number % 3 == 2 else target.invocation(texts[number])
            for number in order
        ]
        bodies = target.bodies(b"".join(parts), len(parts))
        finding.requests += len(parts)
        for number, body in zip(order, bodies, strict=False):
            answer = json.loads(body)
            if number % 3 == 2:
                correct = isinstance(answer, dict)
            else:
                correct = isinstance(answer, list) and all(
                    answer[0].get(key) == expected[number].get(key)
                    for key in ("summary_text", "sections", "input_tokens")
                )
            if not correct:
                finding.faults.append(f"batch {start}: text {number} got the answer of another request")
        if len(bodies) != len(parts):
            finding.faults.append(f"batch {start}: {len(bodies)} of {len(parts)} answers")
    return finding


def smuggling(target: Target) -> Finding:
    """Messages whose length two servers could interpret differently; the hidden request must not be answered."""
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
        statuses = target.statuses((head + headers + "\r\n" + body).encode())
        finding.requests += 1
        if any(status < 400 for status in statuses[1:]):
            finding.faults.append(f"{headers!r}: {statuses}")
    finding.expect_unchanged(target, before)
    return finding


def odd_bodies(target: Target) -> Finding:
    """Bodies that are costly to parse; each must be refused with an error."""
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
        json.dumps({"inputs": [1] * 160_000}),
        json.dumps({"inputs": [[]] * 120_000}),
        json.dumps({f"field{number}": 1 for number in range(20_000)}),
        json.dumps({"inputs": "x", "parameters": {f"field{number}": 1 for number in range(20_000)}}),
        '{"inputs": "' + "\\\\u" * 1_000_000 + '"}',
    ]
    with httpx.Client(base_url=target.url, timeout=TIMEOUT_S, trust_env=False) as http:
        for body in bodies:
            answer = http.post("/invocations", content=body.encode(), headers={"content-type": "application/json"})
            finding.expect(answer, [400, 413, 422], body[:40])
            if "error" not in answer.text:
                finding.faults.append(f"{body[:40]}: {answer.text[:80]}")
    return finding


def costly_dialogues(target: Target) -> Finding:
    """Dialogues that are costly to split into pieces (data.long=merge) and to check a summary with; also as events."""
    finding = Finding()
    for text in (
        "A. " * 33_000,
        "x" * 99_000,
        "a\n" * 49_000,
        "a: b\n" * 19_000,
        "</s>" * 24_000,
        "[a] " + "b" * 90_000,
        "\u4e2d" * 99_000,
        "e" + "\u0301" * 99_000,
        "5 to 10 " * 12_000,
        "Topic:\n" * 14_000,
    ):
        body = {"inputs": text, "parameters": {"checks": True}}
        for accept in ("application/json", "text/event-stream"):
            with httpx.Client(base_url=target.url, timeout=TIMEOUT_S, trust_env=False) as http:
                answer = http.post(f"/models/{target.model}/invoke", json=body, headers={"accept": accept})
            finding.expect(answer, [200, 413, 422, 503], f"{text[:20]!r} as {accept}")
    return finding


def expanding_text(target: Target, seconds: float, characters: int) -> Finding:
    """Requests with texts that expand during tokenization, while other clients request summaries.

    Args:
        target: The attacked server.
        seconds: Seconds of measuring the other clients, before and during the attack.
        characters: Number of characters in each of the 10 texts of a request.
    """
    finding = Finding()
    baseline = _latencies(target, seconds, finding)
    # In a separate process, so that it does not delay the measured clients.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        attack = process.submit(_flood, target.url, characters, seconds + 2)
        time.sleep(2)
        attacked = _latencies(target, seconds, finding)
        statuses = attack.result()
    refused = 200 not in statuses  # attackers that get answers are clients like the others
    finding.requests += sum(statuses.values())
    before, during = (float(np.percentile(each, 99)) for each in (baseline, attacked))
    finding.note = (
        f"p99 of {CLIENTS} other clients {before * 1e3:.0f} ms, during the attack {during * 1e3:.0f} ms "
        f"({during / before:.2f} times); {ATTACKERS} attackers saw {statuses}"
    )
    if refused and during >= MAX_SLOWDOWN * before:
        finding.faults.append(f"other clients waited {during / before:.1f} times as long")
    return finding


def _flood(url: str, characters: int, seconds: float) -> dict[int, int]:
    """Send the same request from all attackers at once, again and again; return the number of each status."""
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
    """Latencies in seconds of a few clients that each send one request after another."""
    end = time.monotonic() + seconds

    def client(_: int) -> list[float]:
        latencies = []
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
            while time.monotonic() < end:
                started = time.monotonic()
                answer = http.post(f"{target.url}/invocations", json={"inputs": DIALOGUE})
                latencies.append(time.monotonic() - started)
                finding.expect(answer, [200], "a dialogue of another client")
        return latencies

    with ThreadPoolExecutor(CLIENTS) as clients:
        return [latency for latencies in clients.map(client, range(CLIENTS)) for latency in latencies]


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
    "costly dialogues": costly_dialogues,
}
TIMED: dict[str, int] = {"text that expands": 100_000, "text that expands, within the limits": 49_000}
"""Attacks on the latency of other clients, with the number of characters in each text."""


def main() -> None:
    """Run the attacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the server, such as http://127.0.0.1:8080")
    parser.add_argument("token_file", type=Path, help="file with the server's token")
    parser.add_argument("--only", choices=[*ATTACKS, *TIMED], help="run only this attack")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of each latency measurement")
    options = parser.parse_args()
    target = Target.find(options.url.rstrip("/"), options.token_file)
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
