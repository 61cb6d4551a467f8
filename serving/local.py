"""DJL Serving on this machine, bound to 127.0.0.1; stopping it removes all its processes and files."""

import contextlib
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

from neuron_sum.artifact import MANIFEST, Manifest, read_manifest
from neuron_sum.errors import ServerError
from neuron_sum.platform.matrix import PLATFORMS
from neuron_sum.recipes.schema import ServeConfig
from neuron_sum.subprocesses import ending_with_parent
from serving import djl, properties
from serving.playground import PAGE, page_with

START_LIMIT_S = properties.LOADING_TIMEOUT_S
ANSWER_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0
"""Seconds that SageMaker waits between SIGTERM and SIGKILL for a container."""

HEAP = "256m"
COMMON_POOL_SINCE = 25
"""The first Java version whose CompletableFuture uses the common pool regardless of its size."""
COMMON_POOL_SIZE = 1024
"""Maximum number of requests that wait for answers at once since Java 25; far more than the default queue size."""
SOCKET_PATH_LIMIT = 107
"""Maximum length of a Unix socket's path in bytes (unix(7), sun_path)."""
SOCKET_SUFFIX = "/nsum-12345678/tmp/djl_sock.19000"
"""The longest end of such a path; DJL Serving increments the number for each worker."""
CONFIGURATION = djl.PROJECT / "log4j2.xml"
PAGE_PROPERTY = "neuronsum.page"
MODELS_PROPERTY = "neuronsum.models"
TOKEN_VARIABLE = "NEURON_SUM_TOKEN_FILE"


@dataclass(frozen=True)
class Model:
    """A model to serve.

    Attributes:
        name: The name in URLs.
        folder: The model's folder in the layout of package.py.
    """

    name: str
    folder: Path


def java_options(temporary: Path, java: str = PLATFORMS[0].java) -> list[str]:
    """Options of the Java virtual machine, on this machine and in the image.

    Args:
        temporary: The server's temporary folder, which no other server uses.
        java: The Java version, such as "17" or "25.0.3". Default: the image's.
    """
    # DJL waits for each answer of an async worker in a thread of the common pool. The pool has one thread less than
    # the machine has cores, so that 4 cores would serve 3 requests at a time. Before Java 25, parallelism 1 means one
    # thread per task, and a large pool of blocked threads can leave tasks unexecuted (observed with 17). Since Java 25,
    # 1 means one task at a time, and a large pool executes all tasks. The pool creates its threads on demand.
    parallelism = 1 if int(java.partition(".")[0]) < COMMON_POOL_SINCE else COMMON_POOL_SIZE
    return [
        f"-Xmx{HEAP}",
        "-XX:+ExitOnOutOfMemoryError",
        f"-Djava.util.concurrent.ForkJoinPool.common.parallelism={parallelism}",
        f"-Djava.io.tmpdir={temporary}",
        f"-Dlog4j.configurationFile={CONFIGURATION}",
    ]


class LocalServer:
    """A server in a separate process; use it in a `with` statement.

    Any client that reaches the port may request summaries. Changing models and adapters requires `headers`, which
    contain this start's token. The token is in `token_file`, which only the owner of this process can read.

    Args:
        models: One model, also served at /invocations; or several, each served at /models/NAME/invoke.
        limits: Limits that determine the server's settings.
        port: The port on 127.0.0.1; 0 for any free port.
        on_line: Called with every line of the server's output.
        environment: Additional environment variables of the server.
        java: Additional options of the Java virtual machine.
        prefix: Words before the command, such as `taskset -c 1`.
        playground: Whether to serve the playground at /.

    Raises:
        ServerError: If the server does not start; the message has the last lines of its output.
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
        self._lines: deque[str] = deque(maxlen=200)
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
        """Process id of Java."""
        assert self._process is not None
        return self._process.pid

    @property
    def token_file(self) -> Path:
        """The file that contains the token."""
        assert self._folder is not None
        return self._folder / "token"

    @property
    def running(self) -> bool:
        """Whether the Java process is running."""
        return self._process is not None and self._process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """The Python worker processes."""
        workers = []
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # the process can end between the two calls
                if "djl_python_engine" in " ".join(child.cmdline()):
                    workers.append(child)
        return workers

    def start(self) -> None:
        """Start the server and wait until every model answers.

        Raises:
            ServerError: If the server stops, or a model does not answer in time.
        """
        home = djl.install()
        if _is_port_in_use(self.port):
            raise ServerError(
                f"port {self.port} of 127.0.0.1 is in use", "use another --port, or --port 0 for any free port"
            )
        # A separate folder, because a server kills the workers that it finds in its folder.
        self._folder = Path(tempfile.mkdtemp(prefix="nsum-", dir=_parent_of_sockets()))
        temporary = self._folder / "tmp"
        temporary.mkdir()
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self._token, encoding="utf-8")
        roots = dict.fromkeys(str(model.folder.resolve()) for model in self._models)
        self._java.append(f"-D{MODELS_PROPERTY}={os.pathsep.join(roots)}")
        if self._playground:
            page = self._folder / PAGE.name
            page.write_text(_playground(self._models), encoding="utf-8")
            self._java.append(f"-D{PAGE_PROPERTY}={page}")
        command = [
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
            "NEURON_SUM_HOSTS": "127.0.0.1,localhost,[::1]",
            "SAGEMAKER_MULTI_MODEL": "false",
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
        environment |= properties.worker_environment([_manifest(model) for model in self._models], environment)
        self._process = subprocess.Popen(
            ending_with_parent(command),
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
        """Add a model to a running server, as SageMaker does for a multi-model endpoint.

        Raises:
            ServerError: If the model cannot be loaded.
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
            reasons = [line for line in self._lines if "not loaded: " in line] or [answer.text.strip()]
            raise ServerError(f"{model.name} was not loaded: {reasons[-1][:1000]}")

    def unload(self, name: str) -> None:
        """Remove a model."""
        self._http.delete(f"/models/{name}").raise_for_status()

    def stop(self) -> None:
        """Let the server answer the accepted requests, then end all its processes and remove its files."""
        process, reader = self._process, self._reader
        try:
            if process is not None and self.running:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_LIMIT_S)
        finally:
            self.kill()
            if reader is not None:
                reader.join(timeout=5)
            if process is not None:
                process.wait()
                if process.stdout is not None and not (reader and reader.is_alive()):  # closing waits for its read
                    process.stdout.close()
            self._process = None
            self._http.close()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """End all processes of the server at once, also while `stop` waits; a signal handler may call it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self, output: Iterable[str]) -> None:
        for line in output:
            self._lines.append(line.rstrip("\n"))
            if self._on_line is not None:
                self._on_line(line.rstrip("\n"))

    def _wait(self, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + START_LIMIT_S
        while not ready():
            if not self.running or time.monotonic() > end:
                state = f"did not start within {START_LIMIT_S} s" if self.running else "stopped"
                lines = list(self._lines)
                errors = [line for line in lines if "not loaded: " in line] or [
                    line for line in lines if "ERROR" in line
                ]
                raise ServerError(f"DJL Serving {state}: {' | '.join((errors or lines)[-3:])[:1500]}")
            time.sleep(0.1)

    def _ready(self, name: str) -> bool:
        """Whether a model answers a request; /ping answers 200 for a model that is still loading."""
        try:
            answer = self._http.post(
                f"/predictions/{name}",
                json={"inputs": "#Person1#: Hello.", "parameters": {"max_new_tokens": 1}},
            )
        except httpx.TransportError:
            return False
        return answer.status_code in (200, 422)  # 422: summaries with sections need more than one token

    def _get(self, path: str) -> httpx.Response | None:
        try:
            return self._http.get(path)
        except httpx.TransportError:
            return None


def _playground(models: Sequence[Model]) -> str:
    """The page with the artifacts' adapters filled in, because DJL lists only adapters registered through its API."""
    known = {}
    for model in models:
        manifest = _manifest(model)
        known[model.name] = {"default": manifest.default_adapter, "adapters": manifest.adapter_names}
    return page_with(known)


def _manifest(model: Model) -> Manifest:
    return read_manifest(model.folder / properties.ARTIFACT / MANIFEST)


def _java_version() -> str:
    output = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr
    match = re.search(r'version "([0-9.]+)', output)
    if match is None:
        raise ServerError(f"`java -version` prints {output[:200]!r}", f"install Java {PLATFORMS[0].java} or newer")
    return match[1]


def _parent_of_sockets() -> str:
    """The folder for temporary files, or /tmp if a socket's path in that folder would be too long."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder + SOCKET_SUFFIX)) <= SOCKET_PATH_LIMIT else "/tmp"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_port_in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
