"""Linux namespaces for a container without Docker: separate mounts, processes and network, with a folder as /opt/ml.

It imports only the standard library, because the second half is a script that runs inside the namespaces:

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
"""SageMaker's folder for all files of a job."""

UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
"""From util-linux; the command becomes process 1, like the entrypoint of a container, and its end ends all others."""

AS_USER = ("--user", "--map-root-user")
"""Further options for users who may not mount, if the kernel allows them."""

PROBE_LIMIT_S = 30
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
"""netdevice(7): flags of a network interface."""


CHECKS = """\
import errno, os, psutil, socket
assert os.path.isdir({folder!r}), "no /opt/ml"
assert os.getpid() == 1, "other processes are visible"
assert socket.socket().connect_ex(("192.0.2.1", 9)) == errno.ENETUNREACH, "the network is reachable"
"""
"""Checks that run inside the namespaces; 192.0.2.1 is reserved for documentation (RFC 5737)."""


@cache
def allowed(scratch: Path, python: Path) -> tuple[str, ...] | str:
    """Try to run a command in namespaces and return the `unshare` prefix that works.

    Args:
        scratch: A writable folder.
        python: The interpreter of the container, which must be available inside, with its packages.

    Returns:
        The `unshare` command and its options; or the reason as text if namespaces are not allowed.
    """
    if shutil.which(UNSHARE[0]) is None:
        return "`unshare` (util-linux) is not installed"
    ml = scratch / "probe"
    (ml / "checkpoints").mkdir(parents=True, exist_ok=True)
    reason = ""
    for words in (UNSHARE, (*UNSHARE, *AS_USER)):
        checks = CHECKS.format(folder=str(BASE / "checkpoints"))
        command = inside(words, ml, ml / "checkpoints", scratch / "probe-opt", [str(python), "-c", checks])
        try:
            finished = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            reason = f"{' '.join(words)} did not end"
            continue
        if finished.returncode == 0:
            return words
        reason = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
    return f"namespaces are not allowed on this machine: {reason}"


def inside(words: tuple[str, ...], ml: Path, checkpoints: Path, stage: Path, command: list[str]) -> list[str]:
    """Wrap a command to run in namespaces.

    Args:
        words: The `unshare` prefix from `allowed`.
        ml: The folder to mount as /opt/ml.
        checkpoints: The folder to mount as /opt/ml/checkpoints.
        stage: A folder to create for the mounts.
        command: The command to run inside.
    """
    stage.mkdir(exist_ok=True)
    # Use sys.executable, because this runs before the container's file system is mounted.
    return [*words, sys.executable, "-I", "-S", __file__, str(ml), str(checkpoints), str(stage), *command]


def _enter(ml: Path, checkpoints: Path, stage: Path, command: list[str]) -> None:
    """Mount the folder as /opt/ml and execute the command.

    The new /opt is prepared in `stage` and mounted over /opt in the last step, so that files below /opt (Python, the
    checkout, the folder itself) are available both before and after that step.
    """
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", stage)
    for entry in sorted(OPT.iterdir()):
        target = stage / entry.name
        if entry.is_symlink():
            target.symlink_to(entry.readlink())
        elif entry.is_dir() and entry != BASE:
            target.mkdir()
            _mount("--rbind", entry, target)
        elif entry.is_file():
            target.touch()
            _mount("--bind", entry, target)
    (stage / BASE.name).mkdir()
    _mount("--bind", ml, stage / BASE.name)
    _mount("--bind", checkpoints, stage / BASE.name / "checkpoints")
    _mount("--rbind", stage, OPT)
    _loopback_up()
    os.execvp(command[0], command)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def _loopback_up() -> None:
    """Bring up the loopback interface, which is the only interface of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(control, SIOCGIFFLAGS, name))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))


if __name__ == "__main__":
    _enter(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
