"""A PostgreSQL server of its own for a test."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_USER = "postgres"  # the server refuses to run as root


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a server, and give the address of an empty database in it. Skip the test if that cannot be done here."""
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    command = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], *map(str, installed)]))
    if command is None:
        pytest.skip("PostgreSQL is not installed")
    programs, data = Path(command).resolve().parent, folder / "data"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    as_user = ["runuser", "-u", _USER, "--"] if os.geteuid() == 0 else []
    folder.mkdir()
    if as_user:
        shutil.chown(folder, _USER)
        for above in folder.parents[:3]:  # pytest's folders are private
            above.chmod(0o755)

    def run(program: str, *arguments: str | Path) -> None:
        command = [*as_user, str(programs / program), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)

    run("initdb", "--auth=trust", f"--username={_USER}", "-D", data)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run("pg_ctl", "start", "-w", "-D", data, "-o", options, "-l", folder / "log")
    try:
        yield f"postgresql+psycopg://127.0.0.1:{port}/{_USER}"
    finally:
        run("pg_ctl", "stop", "-D", data, "-m", "immediate")
