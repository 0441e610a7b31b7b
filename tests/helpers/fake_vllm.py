"""A server on loopback with vLLM's addresses that answers a prompt with its own first token, and fails on demand."""

from __future__ import annotations

import json
import threading
import uuid
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from safetensors.torch import load_file


class FakeVLLM(ThreadingHTTPServer):
    """
    `faults` lists what the next completions do instead of answering: "drop", "hang", "500" or "400"; `faults_of` what
    the next calls of other addresses and methods do.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0, takes_weights=True, max_model_len=128, max_lora_rank=0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.takes_weights, self.max_model_len, self.max_lora_rank = takes_weights, max_model_len, max_lora_rank
        self.instance, self.faults, self.weights, self.log = uuid.uuid4().hex, [], [], []
        self.loaded = ""  # the name of the weights that came last
        self.adapters, self.asked = {}, []  # those that are served, by their names; the models that completions name
        self.faults_of = defaultdict(list)
        self.release = threading.Event()  # ends what hangs

    def restart(self):
        """Forget what a process forgets that is started anew."""
        self.instance, self.loaded, self.adapters = uuid.uuid4().hex, "", {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(**settings):
    server = FakeVLLM(**settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.log.append(self.path)
        if self._fails(self.server.faults_of[self.path]):
            return
        models = [
            {"id": "m", "max_model_len": self.server.max_model_len},
            *({"id": id} for id in self.server.adapters),
        ]
        replies = {"/health": {}, "/v1/models": {"data": models}}
        self._reply(200, replies[self.path])

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        server.log.append(called := body.get("method", self.path))
        if self._fails(server.faults_of[called]):
            return
        if self.path == "/v1/completions":
            self._complete(body)
        elif self.path == "/reset_prefix_cache":
            self._reply(200, {"success": True})
        elif self.path.endswith("load_lora_adapter") and server.max_lora_rank:
            if "lora_path" in body:
                server.adapters[body["lora_name"]] = load_file(f"{body['lora_path']}/adapter_model.safetensors")
            else:
                del server.adapters[body["lora_name"]]
            self._reply(200, "Success")
        elif not server.takes_weights or "method" not in body:
            self._reply(404, {"detail": "Not Found"})
        elif body["method"] == "turnppo_instance":
            self._reply(200, {"results": [server.instance]})
        elif body["method"] == "turnppo_max_lora_rank":
            self._reply(200, {"results": [str(server.max_lora_rank)]})
        elif body["method"] == "turnppo_loaded":
            self._reply(200, {"results": [server.loaded]})
        else:
            file, server.loaded = body["args"]
            server.weights.append(load_file(file))
            self._reply(200, {"results": [None]})

    def _complete(self, body):
        if self._fails(self.server.faults):
            return
        self.server.asked.append(body["model"])
        ids = [body["prompt"][0]] * min(2, body["max_tokens"])
        choice = {"token_ids": ids, "logprobs": {"token_logprobs": [-0.5] * len(ids)}, "finish_reason": "stop"}
        self._reply(200, {"choices": [choice]})

    def _fails(self, faults):
        """Whether this call was made to fail, as it just did."""
        fault = faults.pop(0) if faults else None
        if fault == "hang":
            self.server.release.wait()
        if fault in ("drop", "hang"):
            self.connection.close()
        elif fault is not None:
            self._reply(int(fault), {"error": "made to fail"})
        return fault is not None

    def _reply(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
