"""Linux namespaces for a container without Docker: mounts, processes and a network of its own, a folder as /opt/ml.

Nothing but the standard library is imported, for the second half is a script that runs inside:

    unshare --mount --net --pid … python3 namespace.py ML CHECKPOINTS STAGE COMMAND...
"""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

OPT = Path("/opt")
BASE = OPT / "ml"
"""Where SageMaker has everything of a job's."""

UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
"""util-linux; the command becomes process 1, as a container's entrypoint is, and with it all others end."""

AS_USER = ("--user", "--map-root-user")
"""What a user who is not root may, where the kernel allows it; only those who may mount can do without."""

PROBE_LIMIT_S = 30
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
"""netdevice(7): flags of a network interface."""


SEEN = """\
import errno, os, psutil, socket
assert os.path.isdir({folder!r}), "no /opt/ml"
assert os.getpid() == 1, "the processes of others are seen"
assert socket.socket().connect_ex(("192.0.2.1", 9)) == errno.ENETUNREACH, "there is a way out"
"""
"""What must hold inside; 192.0.2.1 is nobody's (RFC 5737)."""


@cache
def allowed(scratch: Path, python: Path) -> tuple[str, ...] | str:
    """What has to stand before a command here, found out by doing it.

    Args:
        scratch: A folder that may be written.
        python: The interpreter of the container, which must still be there inside, with its packages.

    Returns:
        The words of `unshare`; or, where it is not allowed, a text that says why.
    """
    if shutil.which(UNSHARE[0]) is None:
        return "`unshare` (util-linux) is not there"
    ml = scratch / "probe"
    (ml / "checkpoints").mkdir(parents=True, exist_ok=True)
    said = ""
    for words in (UNSHARE, (*UNSHARE, *AS_USER)):
        seen = SEEN.format(folder=str(BASE / "checkpoints"))
        command = inside(words, ml, ml / "checkpoints", scratch / "probe-opt", [str(python), "-c", seen])
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            said = f"{' '.join(words)} did not end"
            continue
        if done.returncode == 0:
            return words
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"no namespace is allowed here: {said}"


def inside(words: tuple[str, ...], ml: Path, checkpoints: Path, stage: Path, command: list[str]) -> list[str]:
    """A command, in namespaces.

    Args:
        words: Of `allowed`.
        ml: What it sees as /opt/ml.
        checkpoints: What it sees as /opt/ml/checkpoints.
        stage: A folder that is made here, for the mounts.
        command: What to run there.
    """
    stage.mkdir(exist_ok=True)
    # sys.executable, not the container's Python: this runs before the container's file system is there.
    return [*words, sys.executable, "-I", "-S", __file__, str(ml), str(checkpoints), str(stage), *command]


def _enter(ml: Path, checkpoints: Path, stage: Path, command: list[str]) -> None:
    """Makes /opt/ml out of the folder, and becomes the command.

    All is put together in `stage` and mounted over /opt at the end, so that whatever lies below /opt (Python, the
    checkout, the folder itself) can still be found until then, and is there again afterwards.
    """
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", stage)
    for entry in sorted(OPT.iterdir()):
        there = stage / entry.name
        if entry.is_symlink():
            there.symlink_to(entry.readlink())
        elif entry.is_dir() and entry != BASE:
            there.mkdir()
            _mount("--rbind", entry, there)
        elif entry.is_file():
            there.touch()
            _mount("--bind", entry, there)
    (stage / BASE.name).mkdir()
    _mount("--bind", ml, stage / BASE.name)
    _mount("--bind", checkpoints, stage / BASE.name / "checkpoints")
    _mount("--rbind", stage, OPT)
    _loopback_up()
    os.execvp(command[0], command)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def _loopback_up() -> None:
    """A new network namespace has the loopback alone, and that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(control, SIOCGIFFLAGS, name))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))


if __name__ == "__main__":
    _enter(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
