"""A ``python -m MODULE …`` that starts at once, for scripts that call it many times.

A server imports once what the modules need, which takes seconds; each command then runs in a fork of it, with
its own arguments, environment, directory, input and output.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    command = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(command).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(command)
    sys.exit(int.from_bytes(server.recv(1), "big"))
"""


@contextlib.contextmanager
def warm_python(folder: Path, modules: list[str], environment: dict[str, str]) -> Iterator[Path]:
    """Within it, the path of an executable that stands for ``python`` with these modules imported."""
    address, client = str(folder / "socket"), folder / "python"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    command = [sys.executable, __file__, address, *modules]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as server:
        try:
            assert server.stdout.readline() == b"ready\n"
            yield client
        finally:
            server.kill()


def serve(address: str, modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            with client:
                if os.fork() == 0:
                    code = 1
                    try:
                        code = run(client)
                    finally:
                        client.sendall(bytes([code]))
                        os._exit(0)
            os.wait()  # the scripts' commands come one after the other


def run(client: socket.socket) -> int:
    """Runs a command and returns its exit code."""
    size, descriptors, *_ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as sent:
        (flag, module, *arguments), folder, environment = json.loads(sent.read(int.from_bytes(size, "big")))
    assert flag == "-m", flag
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, range(3), "rww")
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
