"""A real DJL Serving on this machine, bound to 127.0.0.1, which leaves nothing behind."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from neuron_sum.artifact import ADAPTERS, open_artifact
from neuron_sum.errors import ServerError
from neuron_sum.platform.matrix import PLATFORMS
from neuron_sum.recipes.schema import ServeConfig
from serving import djl, properties

START_LIMIT_S = properties.LOADING_TIMEOUT_S
ANSWER_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0
"""What SageMaker gives a container between SIGTERM and SIGKILL."""

HEAP = "256m"
COMMON_POOL_SINCE = 25
"""The first Java whose CompletableFuture uses the common pool whatever its size."""
WAITING = 1024
"""Requests whose answers can be waited for at once, on such a Java; far more than the default queue takes."""
SOCKET_PATH = 107
"""Bytes that a Unix socket's path may have (unix(7), sun_path)."""
SOCKET = "/nsum-12345678/tmp/djl_sock.19000"
"""What such a path ends in; the number is DJL Serving's, one more for each worker."""
CONFIGURATION = djl.PROJECT / "log4j2.xml"
PAGE = Path(__file__).with_name("playground.html")
PAGE_PROPERTY = "neuronsum.page"
MODELS_PROPERTY = "neuronsum.models"
TOKEN_VARIABLE = "NEURON_SUM_TOKEN_FILE"
KNOWN = '<script type="application/json" id="known">{}</script>'


@dataclass(frozen=True)
class Model:
    """A model to serve.

    Attributes:
        name: In URLs.
        folder: In the layout of package.py.
    """

    name: str
    folder: Path


def java_options(temporary: Path, java: str = PLATFORMS[0].java) -> list[str]:
    """Options of the Java machine, here and in the image.

    Args:
        temporary: Of this server alone.
        java: The machine's version, "17" or "25.0.3"; the image's if not given.
    """
    # DJL waits for each answer of an async worker in a thread of the common pool. That has one thread less than there
    # are cores, so that on 4 cores 3 requests would be served at a time. Before Java 25, 1 means a thread for each
    # task, while a large pool of threads that block can leave tasks lying (seen with 17); from 25 on, 1 means one at a
    # time, and a large pool serves all. It creates its threads as it needs them.
    parallelism = 1 if int(java.partition(".")[0]) < COMMON_POOL_SINCE else WAITING
    return [
        f"-Xmx{HEAP}",
        "-XX:+ExitOnOutOfMemoryError",
        f"-Djava.util.concurrent.ForkJoinPool.common.parallelism={parallelism}",
        f"-Djava.io.tmpdir={temporary}",
        f"-Dlog4j.configurationFile={CONFIGURATION}",
    ]


class LocalServer:
    """A server in a separate process; use it in a `with` statement.

    Whoever reaches the port may ask for summaries. Models and adapters can be changed only with `headers`, which hold
    the token of this start. The token is in `token_file`, which only the owner of this process can read.

    Args:
        models: One, behind /invocations too; or several, each behind /models/NAME/invoke.
        limits: For the server's own settings.
        port: 0 for any that is free.
        on_line: Told of every line that the server writes.
        environment: Added to that of the server.
        java: Further options of the Java machine.
        prefix: Before the command, such as `taskset -c 1`.
        playground: Whether GET / is a page to try the models in.

    Raises:
        ServerError: If it does not come up, with the last lines it said.
    """

    def __init__(
        self,
        models: Sequence[Model],
        limits: ServeConfig,
        port: int = 0,
        on_line: Callable[[str], None] | None = None,
        environment: Mapping[str, str] | None = None,
        java: Sequence[str] = (),
        prefix: Sequence[str] = (),
        playground: bool = False,
    ) -> None:
        self._models, self._limits, self._on_line = list(models), limits, on_line
        self._said: deque[str] = deque(maxlen=200)
        self._environment, self._java, self._prefix = dict(environment or {}), list(java), list(prefix)
        self._playground = playground
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._folder: Path | None = None
        self._token = secrets.token_urlsafe(32)
        self.headers = {"Authorization": f"Bearer {self._token}"}
        self._http = httpx.Client(base_url=self.url, headers=self.headers, timeout=ANSWER_LIMIT_S, trust_env=False)

    def __enter__(self) -> "LocalServer":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the Java process."""
        assert self._process is not None
        return self._process.pid

    @property
    def token_file(self) -> Path:
        """The file with the token."""
        assert self._folder is not None
        return self._folder / "token"

    @property
    def running(self) -> bool:
        """Whether the Java process lives."""
        return self._process is not None and self._process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """The Python processes."""
        found = []
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end right now
                if "djl_python_engine" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def start(self) -> None:
        """Starts it and waits until every model answers.

        Raises:
            ServerError: If it does not.
        """
        home = djl.install()
        if _taken(self.port):
            raise ServerError(f"port {self.port} of 127.0.0.1 is taken", "--port 0 takes one that is free")
        # Of its own, for a server kills workers it finds in its folder.
        self._folder = Path(tempfile.mkdtemp(prefix="nsum-", dir=_parent_of_sockets()))
        temporary = self._folder / "tmp"
        temporary.mkdir()
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self._token, encoding="utf-8")
        roots = dict.fromkeys(str(model.folder.resolve().parent) for model in self._models)
        self._java.append(f"-D{MODELS_PROPERTY}={os.pathsep.join(roots)}")
        if self._playground:
            page = self._folder / PAGE.name
            page.write_text(_playground(self._models), encoding="utf-8")
            self._java.append(f"-D{PAGE_PROPERTY}={page}")
        # Whatever ends this process, even SIGKILL, ends the server too.
        follow = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        command = [
            *follow,
            *self._prefix,
            "java",
            *java_options(temporary, _java_version()),
            *self._java,
            "-cp",
            f"{home / djl.LIBRARIES}/*",
            djl.MAIN_CLASS,
        ]
        single = self._models[0] if len(self._models) == 1 else None
        if single is not None:
            command += ["-m", f"{single.name}::Python:-1={single.folder.resolve().as_uri()}"]
        environment = {
            **os.environ,
            "PYTHON_EXECUTABLE": sys.executable,
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(temporary),
            "DJL_CACHE_DIR": str(self._folder / "cache"),
            "MODEL_SERVER_HOME": str(self._folder),
            "SERVING_INFERENCE_ADDRESS": self.url,
            "SERVING_MANAGEMENT_ADDRESS": self.url,
            **properties.server_environment(self._limits),
            TOKEN_VARIABLE: str(self.token_file),
            **self._environment,
        }
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._wait(lambda: self._get("/ping") is not None)
        for model in self._models if single is None else []:
            self.load(model)
        for model in self._models:
            self._wait(lambda name=model.name: self._ready(name))  # type: ignore[misc]

    def load(self, model: Model) -> None:
        """Adds a model to a running server, as SageMaker does for a multi-model endpoint.

        Raises:
            ServerError: If it is not loaded.
        """
        answer = self._http.post(
            "/models",
            timeout=START_LIMIT_S,
            params={
                "url": model.folder.resolve().as_uri(),
                "model_name": model.name,
                "engine": "Python",
                "device": "-1",
            },
        )
        if answer.status_code != 200:
            told = [line for line in self._said if "not loaded: " in line] or [answer.text.strip()]
            raise ServerError(f"{model.name} was not loaded: {told[-1][:1000]}")

    def unload(self, name: str) -> None:
        """Removes a model."""
        self._http.delete(f"/models/{name}").raise_for_status()

    def stop(self) -> None:
        """Lets it answer what it has accepted, then ends every process it started."""
        if self._process is not None:
            children = psutil.Process(self.pid).children(recursive=True) if self.running else []
            if self.running:
                self._process.send_signal(signal.SIGTERM)
                try:
                    self._process.wait(STOP_LIMIT_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            _, alive = psutil.wait_procs(children, timeout=5)
            for child in alive:
                child.kill()
            if self._reader is not None:
                self._reader.join(timeout=5)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
        self._http.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, output: Iterable[str]) -> None:
        for line in output:
            self._said.append(line.rstrip("\n"))
            if self._on_line is not None:
                self._on_line(line.rstrip("\n"))

    def _wait(self, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + START_LIMIT_S
        while not ready():
            if not self.running or time.monotonic() > end:
                state = "did not come up in time" if self.running else "stopped"
                said = list(self._said)
                told = [line for line in said if "not loaded: " in line] or [line for line in said if "ERROR" in line]
                raise ServerError(f"DJL Serving {state}: {' | '.join((told or said)[-3:])[:1500]}")
            time.sleep(0.1)

    def _ready(self, name: str) -> bool:
        """Whether a model answers a request; /ping says 200 for one that is still loading."""
        try:
            answer = self._http.post(
                f"/predictions/{name}",
                json={"inputs": "#Person1#: Hello.", "parameters": {"max_new_tokens": 1}},
            )
        except httpx.TransportError:
            return False
        return answer.status_code == 200

    def _get(self, path: str) -> httpx.Response | None:
        try:
            return self._http.get(path)
        except httpx.TransportError:
            return None


def _playground(models: Sequence[Model]) -> str:
    """The page, told which adapters the artifacts bring: DJL lists only those that were registered by its API."""
    known = {}
    for model in models:
        manifest = open_artifact(model.folder / properties.ARTIFACT).manifest
        adapters = {Path(name).parts[1] for name in manifest.files if name.startswith(f"{ADAPTERS}/")}
        known[model.name] = {"default": manifest.default_adapter, "adapters": sorted(adapters)}
    # No name can end the script element that holds this.
    return PAGE.read_text(encoding="utf-8").replace(
        KNOWN.format("{}"), KNOWN.format(json.dumps(known).replace("<", "\\u003c"))
    )


def _java_version() -> str:
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr
    found = re.search(r'version "([0-9.]+)', said)
    if found is None:
        raise ServerError(f"`java -version` says {said[:200]!r}", f"install Java {PLATFORMS[0].java} or newer")
    return found[1]


def _parent_of_sockets() -> str:
    """The folder for temporary files, unless it is so deep that a socket's path in it would be too long."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder + SOCKET)) <= SOCKET_PATH else "/tmp"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
