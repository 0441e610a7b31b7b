"""Servers of OpenEnv's: in a process that is killed and started again on the same port, or in a thread."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx2


class Server:
    """`turnppo openenv-serve`; `start` waits until it answers, `kill` leaves it no time to say goodbye."""

    def __init__(self, log, environment="turnppo_hf/Sokoban-v0", max_sessions=20, **kwargs):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.log, self.process = log, None
        self.command = [
            *(sys.executable, "-c", "import sys; from turnppo_hf.cli.main import main; sys.exit(main(sys.argv[1:]))"),
            *("openenv-serve", environment, "--port", str(self.port), "--max_sessions", str(max_sessions)),
            *("--environment_kwargs", json.dumps(kwargs)),
        ]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        with open(self.log, "a") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=output)
        for _ in range(600):
            assert self.process.poll() is None, f"the server ended: see {self.log}"
            try:
                httpx2.get(f"{self.url}/health")
                return self
            except httpx2.TransportError:
                time.sleep(0.1)
        raise TimeoutError(f"the server does not answer: see {self.log}")

    def kill(self):
        self.process.kill()
        self.process.wait()


@contextmanager
def serving(make_environment):
    """Serve an environment from a thread; yield the server's URL."""
    import uvicorn

    from turnppo_hf.environments.integrations.openenv_server import openenv_app

    app = openenv_app("served", make_environment)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
