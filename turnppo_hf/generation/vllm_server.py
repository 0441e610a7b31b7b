"""vLLM in a process of its own: the command that starts it, and the client that samples from it over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging

from turnppo_hf.generation.adapter_transfer import base_marks, rank_of, room_for, travels_alone, write_adapter
from turnppo_hf.generation.vllm_colocate import cpu_settings
from turnppo_hf.generation.vllm_generator import Answer
from turnppo_hf.generation.weight_transfer import EXTENSION, engine_weights, unwrapped
from turnppo_hf.trajectory import GenerationError

logger = logging.get_logger(__name__)

_ATTEMPTS = 3  # a request is sent this often before the run stops
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0  # between tries to reach a server that does not answer


class ServerEngine:
    """
    An [`~turnppo_hf.generation.vllm_generator.Engine`] on a server.

    Any server of vLLM's can be sampled from. Weights go to one that `turnppo vllm-serve` started: through a file, so
    that server and trainer need a folder that both see (`TMPDIR` names another one than the machine's own). Where it
    was started with room for the rank of a policy's adapter, `--max_lora_rank`, the base is sent once and then the
    adapter alone; other adapters are merged.

    A server that does not answer is tried again, in longer and longer pauses. One that was started anew in the
    meantime gets the weights again; what it answered before that is noticed at the end of the batch and not used.

    Args:
        url (`str`):
            Such as `"http://127.0.0.1:8000"`.
        model (`nn.Module`, *optional*):
            The actor whose weights `sync` sends. Without it the server samples with its own.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Of the server's weights and activations.
        timeout_s (`float`, *optional*, defaults to `240`):
            How long an answer, or a server that is gone, is waited for.
        max_parallel_requests (`int`, *optional*, defaults to `256`):
            Requests sent at a time.
        gather (`Callable`, *optional*):
            Gives every rank's list the entries of all ranks'. The main rank sends the weights.
        is_main (`bool`, *optional*, defaults to `True`):
            Whether this is the main rank.

    Raises:
        [`~turnppo_hf.trajectory.GenerationError`]: no server answers, it takes no weights and there is a model, or it
            takes no adapter and the model is quantized, so that none can be merged.
    """

    # "processed" at temperature 1 without top-p is the same; elsewhere only what `turnppo vllm-serve` starts is right
    logprobs_are_raw = False

    def __init__(
        self,
        url: str,
        model: nn.Module | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        timeout_s: float = 240.0,
        max_parallel_requests: int = 256,
        gather: Callable[[list[Any]], list[Any]] = list,
        is_main: bool = True,
    ) -> None:
        self.url, self.model, self.dtype, self.timeout_s = url, model, dtype, timeout_s
        self.gather, self.is_main = gather, is_main
        self._senders = ThreadPoolExecutor(max_parallel_requests, thread_name_prefix="vllm-request")
        self._lock = threading.Lock()  # one sender at a time looks after the server
        self._open: dict[str, http.client.HTTPConnection | None] = {}  # requests that are wanted
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._failure: GenerationError | None = None
        self._ready = threading.Event()
        self._wake: threading.Event | None = None
        self._instance = ""  # not asked yet
        self._wait_until_healthy()
        self._served, self.max_context = self._try(self._ask_model)
        self._weights = self._adapter = self._last_adapter = ""  # names of what the server is to have, and had
        self._marks: torch.Tensor | None = None  # of the base that an adapter stands on
        self._takes_adapter = False
        if model is not None:
            memory = Path("/dev/shm")
            folder = os.environ.get("TMPDIR") or (str(memory) if memory.is_dir() else None)
            self._folder = tempfile.TemporaryDirectory(prefix="turnppo-policy-", dir=folder)
            self._instance = self._try(self._ask_instance)
            self._takes_adapter = self._try(lambda: self._check_adapter(model))

    def add(self, request: str, prompt_ids: list[int], sampling: dict[str, Any]) -> None:
        """See [`~turnppo_hf.generation.vllm_generator.Engine`]."""
        self._open[request] = None
        self._senders.submit(self._send, request, prompt_ids, sampling)

    def poll(self, wake: threading.Event | None) -> list[Answer]:
        """
        Wait for answers.

        Raises:
            [`~turnppo_hf.trajectory.GenerationError`]: the server stayed away, or refused a request.
        """
        self._wake = wake = wake or self._ready
        while True:
            self._ready.clear()
            if self._failure is not None:
                raise self._failure
            answers = [self._answers.get() for _ in range(self._answers.qsize())]
            if answers or wake.is_set():
                return answers
            wake.wait()

    def abort(self, requests: list[str]) -> None:
        """Close the connections of requests; the server stops generating for them."""
        for request in requests:
            connection = self._open.pop(request, None)
            if connection is not None and connection.sock is not None:
                with contextlib.suppress(OSError):  # the server has closed it, or is gone
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def sync(self) -> None:
        """
        Send the main rank's weights, while every rank waits; the server forgets what it computed with others.

        Raises:
            [`~turnppo_hf.trajectory.GenerationError`]: on every rank, where the weights could not be sent.
        """
        if self.model is None:
            return
        self._failure = None
        problem = ""
        if self.is_main:
            try:
                self._name_policy()
                self._try(self._push)
            except GenerationError as error:
                problem = str(error)
            except Exception as error:  # the other ranks wait for the answer
                problem = f"The weights could not be sent to the vLLM server at {self.url}: {error!r}."
        answers = self.gather([(problem, self._weights, self._adapter) if self.is_main else ("", "", "")])
        if problems := [text for text, _, _ in answers if text]:
            raise GenerationError(problems[0])
        self._weights, self._adapter = next(names[1:] for names in answers if names[1])  # the main rank's
        self._instance = self._try(self._ask_instance)

    def rest(self) -> None:
        """
        End a batch.

        Raises:
            [`~turnppo_hf.trajectory.GenerationError`]: the server is not the one that got the weights.
        """
        if self.model is not None and self._try(self._ask_instance) != self._instance:
            raise GenerationError(
                f"The vLLM server at {self.url} was started anew during the rollout, so some of its answers came from "
                "other weights than the trainer's. The batch is not trained on."
            )

    def _send(self, request: str, prompt_ids: list[int], sampling: dict[str, Any]) -> None:
        body = {"prompt": prompt_ids, "return_token_ids": True, **sampling}
        try:
            answer = self._try(lambda: self._complete(request, body))
            if answer is not None and request in self._open:
                del self._open[request]
                self._answers.put(answer)
        except GenerationError as error:
            self._failure = error
        except Exception as error:  # a thread has nobody above it who would see it
            self._failure = GenerationError(
                f"The vLLM server at {self.url} gave an answer of another kind: {error!r}."
            )
        self._ready.set()
        if self._wake is not None:
            self._wake.set()

    def _complete(self, request: str, body: dict[str, Any]) -> Answer | None:
        if request not in self._open:
            return None
        body = {"model": self._adapter or self._served, **body}
        [choice] = self._call("POST", "/v1/completions", body, request)["choices"]
        logprobs = tuple(choice["logprobs"]["token_logprobs"])
        return Answer(request, tuple(choice["token_ids"]), logprobs, choice["finish_reason"])

    def _try(self, call: Callable[[], Any]) -> Any:
        """Call again after a failure of the connection, once the server is back and has the weights."""
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:  # what asks whether the server is back can fail as the call can
                    with self._lock:
                        self._recover()
                return call()
            except (OSError, http.client.HTTPException) as error:
                if attempt == _ATTEMPTS - 1:
                    raise GenerationError(
                        f"The vLLM server at {self.url} failed {_ATTEMPTS} times, last with {_said(error)}. It is up, "
                        f"but gave no answer within `vllm_server_timeout` ({self.timeout_s:g} s). See its log, or "
                        "raise the timeout."
                    ) from error
        raise AssertionError

    def _recover(self) -> None:
        self._wait_until_healthy()
        if self._instance and (instance := self._ask_instance()) != self._instance:
            self._push(is_late=True)
            self._instance = instance

    def _name_policy(self) -> None:
        """Name what is sent next: weights as often as they change, the adapter each time."""
        assert self.model is not None
        new = f"policy-{uuid.uuid4().hex}"
        if not self._takes_adapter:
            self._weights = new
            return
        marks = base_marks(self.model)
        if self._marks is None or not torch.equal(marks, self._marks):
            self._weights, self._marks = f"base-of-{new}", marks
        self._last_adapter, self._adapter = self._adapter, new

    def _push(self, *, is_late: bool = False) -> None:
        """
        Send what the server lacks of the policy that was named last.

        Args:
            is_late (`bool`): Whether other ranks may have requests of this policy running, so that the server does
                not forget what it computed: nothing, since it was started anew.
        """
        changed = False
        if str(self._rpc("turnppo_loaded")[0]) != self._weights:
            self._send_weights()
            changed = True
        if self._takes_adapter and self._adapter not in (names := self._served_names()):
            self._send_adapter(unloads=self._last_adapter in names)
            changed = True
        if not changed or self._call("POST", "/reset_prefix_cache").get("success", True) or is_late:
            return
        raise GenerationError(
            f"The vLLM server at {self.url} could not forget what it computed with the last weights, since it has "
            "requests of somebody else running. Give the trainer a server of its own."
        )

    def _send_weights(self) -> None:
        assert self.model is not None
        file = Path(self._folder.name) / "weights.safetensors"
        with self._writing(), engine_weights(self.model, merges=not self._takes_adapter) as weights:
            save_file({name: weight.to("cpu", self.dtype).contiguous() for name, weight in weights}, file)
        try:
            self._rpc("turnppo_load_weights", str(file), self._weights)
        finally:
            file.unlink()

    def _send_adapter(self, *, unloads: bool) -> None:
        """Let the server take the adapter; its files stay for as long as it may read them again."""
        assert self.model is not None
        folder = Path(self._folder.name) / self._adapter
        if not folder.exists():
            with self._writing():
                write_adapter(self.model, folder, self.dtype)
        if unloads:
            self._post("/v1/unload_lora_adapter", lora_name=self._last_adapter)
        self._post("/v1/load_lora_adapter", lora_name=self._adapter, lora_path=str(folder))
        for other in Path(self._folder.name).iterdir():
            if other != folder:
                shutil.rmtree(other)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Tell a full disk, and the like, from a lost connection."""
        try:
            yield
        except Exception as error:  # of the file system, of safetensors, of PEFT
            raise GenerationError(
                f"The policy could not be written to {self._folder.name} for the vLLM server ({error!r}), so it would "
                "sample with another one. Make room there, or name another folder that both see by `TMPDIR`."
            ) from error

    def _served_names(self) -> list[str]:
        return [str(item["id"]) for item in self._call("GET", "/v1/models")["data"]]

    def _check_adapter(self, model: nn.Module) -> bool:
        """Whether the policy's adapter goes alone; a warning where it would if the server had room."""
        if not travels_alone(model):
            return False
        rank, room = rank_of(model), int(self._rpc("turnppo_max_lora_rank")[0])
        advice = f"start the server with `turnppo vllm-serve MODEL --max_lora_rank {rank}`"
        if room < rank and getattr(unwrapped(model).get_base_model(), "is_quantized", False):
            raise GenerationError(
                f"The vLLM server at {self.url} has no room for an adapter of rank {rank}, and merged into a "
                f"quantized base it would be rounded away. Please {advice}."
            )
        if room < rank and self.is_main:
            logger.warning(
                "The vLLM server at %s has no room for an adapter of rank %d, so all weights are sent for every "
                "batch, with the adapter merged. To send the adapter alone, %s.",
                *(self.url, rank, advice),
            )
        return room >= rank

    def _ask_model(self) -> tuple[str, int | None]:
        try:
            [served] = self._call("GET", "/v1/models")["data"][:1]
            return served["id"], served.get("max_model_len")
        except (_RefusedError, ValueError, KeyError, TypeError) as error:
            raise GenerationError(
                f"What answers at {self.url} is not a vLLM server: it names no model under /v1/models ({error!r}). "
                "Correct `vllm_server_base_url`, or `vllm_server_host` and `vllm_server_port`."
            ) from error

    def _ask_instance(self) -> str:
        return str(self._rpc("turnppo_instance")[0])

    def _rpc(self, method: str, *args: str) -> list[Any]:
        try:
            return list(self._call("POST", "/collective_rpc", {"method": method, "args": args})["results"])
        except _RefusedError as error:
            hint = "Start it with `turnppo vllm-serve MODEL`" if error.status == 404 else "See its log"
            raise GenerationError(
                f"The vLLM server at {self.url} did not take the trainer's weights ({error}), so it would sample with "
                f"others. {hint}; trainer and server must see the same folder for temporary files."
            ) from error

    def _post(self, path: str, **body: str) -> None:
        try:
            self._call("POST", path, body)
        except (_RefusedError, _FailedError) as error:
            if self._adapter in self._served_names():  # by another rank, in the meantime
                return
            assert self.model is not None
            hint = (
                f"Start it with `turnppo vllm-serve MODEL --max_lora_rank {rank_of(self.model)}`"
                if "status 404" in str(error)
                else "See its log; trainer and server must see the same folder for temporary files (`TMPDIR`)"
            )
            raise GenerationError(
                f"The vLLM server at {self.url} did not take the trainer's adapter ({error}), so it would sample with "
                f"another policy. {hint}."
            ) from error

    def _wait_until_healthy(self) -> None:
        """Try with growing pauses until the server answers or the time is over."""
        end, pause = time.monotonic() + self.timeout_s, _FIRST_PAUSE_S
        while True:
            if self._failure is not None:  # somebody else waited in vain
                raise self._failure
            try:
                self._call("GET", "/health")
                return
            except (OSError, http.client.HTTPException, _RefusedError) as error:
                if time.monotonic() + pause > end:
                    raise GenerationError(
                        f"No vLLM server answers at {self.url} ({_said(error)}), waited {self.timeout_s:g} s, so "
                        "nothing can be sampled. Start one with `turnppo vllm-serve MODEL`, or correct "
                        "`vllm_server_base_url` or `vllm_server_host` and `vllm_server_port`."
                    ) from error
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None, request: str | None = None) -> Any:
        """
        Make one HTTP call; `request` lets `abort` close it.

        Raises:
            `OSError`, `http.client.HTTPException`: no complete answer, or the server's engine is dead.
            [`~turnppo_hf.trajectory.GenerationError`]: the server refuses a request for a completion.
        """
        address = urlsplit(self.url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(address.hostname), address.port, timeout=self.timeout_s)
        if request in self._open:
            self._open[request] = connection
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, address.path.rstrip("/") + path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        said = content[:300].decode(errors="replace")
        if response.status >= 500:
            raise _FailedError(f"status {response.status}: {said}")
        if response.status >= 400 and request is not None:
            raise GenerationError(
                f"The vLLM server at {self.url} refuses a request ({said}). A prompt longer than its "
                "--max_model_length, or a parameter that it does not know, cannot be sampled."
            )
        if response.status >= 400:
            raise _RefusedError(response.status, said)
        return json.loads(content) if content.lstrip()[:1] in (b"{", b"[") else {}


class _FailedError(ConnectionError):
    """The server failed at what was called."""


class _RefusedError(Exception):
    """The server does not have, or does not allow, what was called."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"status {status}: {text}")
        self.status = status


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def serve_command(
    model: str,
    *,
    host: str,
    port: int,
    dtype: str,
    max_model_length: int | None = None,
    memory_utilization: float | None = None,
    max_lora_rank: int | None = None,
    extra: list[str] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """
    Return the command that starts vLLM's own server so that it takes weights, and its environment.

    The server's developer mode opens the calls that move weights, to everybody who reaches the address: keep it on a
    network that is yours.
    """
    from vllm.platforms import current_platform

    settings: dict[str, Any] = {
        "model": model,
        "host": host,
        "port": port,
        "dtype": dtype,
        "worker_extension_cls": EXTENSION,
        "logprobs_mode": "processed_logprobs",  # of what is drawn from, so that a temperature is in it
        "gpu_memory_utilization": memory_utilization or (0.3 if current_platform.is_cpu() else 0.9),
        **({"max_model_len": max_model_length} if max_model_length else {}),
        **({} if max_lora_rank is None else room_for(max_lora_rank)),
    }
    if current_platform.is_cpu():
        context = max_model_length or AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings
        settings |= cpu_settings(context)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        command += (
            [f"--no-{flag}"] if value is False else [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
        )
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}
    modes = {"VLLM_SERVER_DEV_MODE": "1"}
    if max_lora_rank is not None:
        modes["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return [*command, *(extra or [])], {**defaults, **os.environ, **modes}
