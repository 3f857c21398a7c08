"""Compiles the kernels in C for the processor of this machine, when they are first needed, and keeps the result."""

import hashlib
import logging
import os
import platform
import signal
import subprocess
import tempfile
from ctypes import CDLL, c_int64
from functools import cache
from pathlib import Path
from typing import Any

import torch

from stability.core.files import cache_folder

log = logging.getLogger(__name__)

_SOURCES = [Path(__file__).with_name(name) for name in ("vectors.h", "gru.c", "ctc.c")]
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
_PATIENCE = 120.0  # seconds for the compiler, which needs two
_HASH = hashlib.sha256().digest_size
_TRUSTED = (os.geteuid(), 0)  # users who may own what is run
_OTHERS_WRITE = 0o022  # the permission of a file's group, and of everybody else


def threads() -> tuple[Any, int]:
    """Return libgomp's function that runs another on all of PyTorch's own threads, and the number of these threads.

    PyTorch's threads are awake between its operations; threads of our own would have to be woken for each call. Without
    libgomp in the process the function is None, and the kernels run on one thread: the same results, slower.
    """
    parallel = _parallel()
    return parallel, torch.get_num_threads() if parallel else 1


@cache
def _parallel() -> Any:
    return getattr(CDLL(None), "GOMP_parallel", None)


@cache
def compiled() -> Any:
    """Return the library of compiled kernels. If it cannot be compiled, warn once and return None."""
    parts = [*(source.read_bytes() for source in _SOURCES), *map(str.encode, _FLAGS), _processor()]
    kind = hashlib.sha256(b"\0".join(parts)).hexdigest()
    try:
        folder = cache_folder()
        path = folder / f"kernels-{kind[:16]}.so"
        _make_private(folder)
        if not _is_whole(path):
            _compile(path)
        library = CDLL(str(path))
        library.ctc_scratch.restype = c_int64
        return library
    # RuntimeError: no home folder. AttributeError: the compiler left something else.
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        reason = (isinstance(error, subprocess.CalledProcessError) and error.stderr.strip()) or error
        log.warning(
            "The kernels in C for the GRU and CTC were not compiled (%s). PyTorch's operations replace them and take "
            "at least twice as long. Install a C compiler, or name one in CC; the result is kept in XDG_CACHE_HOME.",
            reason,
        )
        return None


def _make_private(folder: Path) -> None:
    """Make the folder. What is in it is run as this user, so nobody else may put anything there.

    Raises:
        PermissionError: It belongs to another user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid not in _TRUSTED:
        raise PermissionError(f"{folder} belongs to another user: name a folder of your own in XDG_CACHE_HOME")
    if found.st_mode & _OTHERS_WRITE:
        folder.chmod(found.st_mode & ~_OTHERS_WRITE)


def _is_whole(path: Path) -> bool:
    """Return whether the library is as it was compiled: it ends with its hash. A part of it would be a bus error."""
    if not path.is_file():
        return False
    found, content = path.stat(), path.read_bytes()
    own = found.st_uid in _TRUSTED and not found.st_mode & _OTHERS_WRITE
    return own and hashlib.sha256(content[:-_HASH]).digest() == content[-_HASH:]


def _compile(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # another process may compile at the same time
        compiled_file = Path(folder) / path.name
        _run([os.environ.get("CC") or "cc", *_FLAGS, "-o", str(compiled_file), *map(str, _SOURCES[1:]), "-lm"])
        CDLL(str(compiled_file)).ctc_scratch  # noqa: B018 - raises if the compiler left something else
        with compiled_file.open("r+b") as file:  # what follows the parts that an ELF file lists is ignored
            file.write(hashlib.sha256(file.read()).digest())
        compiled_file.chmod(0o700)
        compiled_file.replace(path)


def _run(command: list[str]) -> None:
    """Run a compiler, and end it with all its processes if it takes too long or a signal comes."""
    with tempfile.TemporaryFile("w+") as printed:  # a pipe would have to be read until the last of them has ended
        process = subprocess.Popen(command, stdout=printed, stderr=printed, start_new_session=True)
        try:
            status = process.wait(_PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if status:
            printed.seek(0)
            raise subprocess.CalledProcessError(status, command, stderr=printed.read())


def _processor() -> bytes:
    """Describe the processor, on which `-march=native` depends. Machines of different kinds may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(
        sorted({line for line in lines if line.startswith((b"model name", b"flags", b"Features", b"CPU"))})
    )
