# SPDX-License-Identifier: Apache-2.0
"""The API server over HTTP, as the user's kubeconfig says; answers are the server's own JSON."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes
import urllib3
from kubernetes.client import ApiClient, ApiException
from kubernetes.config import ConfigException
from kubernetes.stream import ws_client

from tandem_cli.cluster.errors import ClusterError, Forbidden, Missing

type Query = Mapping[str, str | Sequence[str]]

MERGE = "application/merge-patch+json"

_CONNECT_SECONDS = 10.0
_CONNECTIONS = 64
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class Options:
    """Which cluster, as whom: kubectl's options of the same names. ``timeout`` of one request, in seconds."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None
    user: str | None = None
    timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``verb`` and ``resource`` are how RBAC calls it; ``resource`` may be a subresource (pods/log)."""

    verb: str
    resource: str
    path: str
    method: str = "GET"
    query: Query | None = None
    body: Any = None
    content_type: str = "application/json"
    namespace: str | None = None


class Connection:
    """An API server.

    Every method raises :class:`ClusterError` where the server does not answer or says no; :class:`Forbidden` and
    :class:`Missing` are the two that a caller may want to tell apart.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._client, self.namespace = _login(options)
        if options.user:
            self._client.set_default_header("Impersonate-User", options.user)

    def ask(self, request: Request) -> Any:
        """The answer's JSON."""
        with closing(self._send(request, self._options.timeout)) as response:
            return json.loads(response.read())

    def lines(self, request: Request, patience: float | None) -> Iterator[bytes]:
        """The answer line by line as it comes, without line ends; ends when the server ends it.

        ``patience``: most seconds between two lines; None for any.
        """
        with closing(self._send(request, patience)) as response:
            rest = b""
            try:
                for chunk in response.stream(2**16):
                    *whole, rest = (rest + chunk).split(b"\n")
                    yield from whole
            except urllib3.exceptions.ReadTimeoutError:
                return
            except urllib3.exceptions.HTTPError as error:
                raise ClusterError(f"the connection to {self._host} broke: {error}") from error
            if rest:
                yield rest

    def execute(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> bytes:
        """What ``command`` wrote to its standard output in a container of a pod.

        Raises:
            ClusterError: it could not be run or failed; the message ends with what it wrote to standard error.
        """
        call = self._exec(namespace, pod, container, command)
        return _collected(call, self._options.timeout, f"{command[0]} in container {container} of pod {pod}")

    def attach(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> ws_client.WSClient:
        """``command`` in a container of a pod, with its standard input and output for as long as it runs."""
        return self._exec(namespace, pod, container, command, stdin="true")

    def _exec(self, namespace: str, pod: str, container: str, command: Sequence[str], **more: str) -> Any:
        if self._options.user:
            raise ClusterError("--as cannot be used here: exec is not made in another's name; use their kubeconfig")
        query: Query = {"container": container, "stdout": "true", "stderr": "true", "command": tuple(command), **more}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/exec"
        # Since 1.35 the API server asks for both, before that for the first.
        request = Request("get and create", "pods/exec", path, query=query, namespace=namespace)
        _, url, headers, *_ = self._serialised(request)
        try:
            return ws_client.websocket_call(
                self._client.configuration, "GET", url, headers=headers, _preload_content=False, binary=True
            )
        except ApiException as error:
            raise self._refused(request, *_handshake(str(error.reason))) from error

    @property
    def _host(self) -> str:
        return str(self._client.configuration.host)

    def _serialised(self, request: Request) -> Any:
        query = [
            (name, value)
            for name, values in (request.query or {}).items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        headers = {"Accept": "application/json", "Content-Type": request.content_type}
        return self._client.param_serialize(
            request.method,
            request.path,
            query_params=query,
            header_params=headers,
            body=request.body,
            auth_settings=["BearerToken"],
        )

    def _send(self, request: Request, patience: float | None) -> Any:
        """The open response, its body unread."""
        try:
            serialised = self._serialised(request)
            timeout = (min(_CONNECT_SECONDS, self._options.timeout), patience)
            response = self._client.call_api(*serialised, _request_timeout=timeout).response
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterError(
                f"no answer from {self._host}: {_cause(error)}. Is the cluster up, and is this the context you mean?"
            ) from error
        if not 200 <= response.status <= 299:
            with closing(response):
                raise self._refused(request, response.status, _message(response.read()))
        return response

    def _refused(self, request: Request, status: int, message: str) -> ClusterError:
        where = f" in namespace {request.namespace}" if request.namespace else " in all namespaces"
        match status:
            case 401:
                return ClusterError(f"{self._host} does not accept the credentials of this context; log in again")
            case 403:
                return Forbidden(f"forbidden: you may not {request.verb} {request.resource}{where} ({message})")
            case 404:
                return Missing(message)
        return ClusterError(f"cannot {request.verb} {request.resource}{where}: {message} (status {status})")


def _login(options: Options) -> tuple[ApiClient, str]:
    """A client of the context's cluster, and the namespace to work in."""
    configuration = kubernetes.client.Configuration()
    configuration.retries = False
    configuration.connection_pool_maxsize = _CONNECTIONS
    file = str(options.kubeconfig) if options.kubeconfig else None
    try:
        kubernetes.config.load_kube_config(file, options.context, configuration)
        contexts, active = kubernetes.config.list_kube_config_contexts(file)
    except ConfigException as error:
        if file or options.context or not _NAMESPACE_FILE.exists():
            raise ClusterError(
                f"no cluster: {str(error).rstrip('.')}. --kubeconfig or KUBECONFIG names a file, --context one of it"
            ) from error
        kubernetes.config.load_incluster_config(configuration)
        return ApiClient(configuration), options.namespace or _NAMESPACE_FILE.read_text().strip()
    chosen = next((one for one in contexts if one["name"] == options.context), active)
    return ApiClient(configuration), options.namespace or chosen["context"].get("namespace") or "default"


def _collected(call: Any, seconds: float, what: str) -> bytes:
    """Standard output of a call until it ends; ``seconds`` may pass without any."""
    output, complaint = bytearray(), bytearray()
    heard = time.monotonic()
    with closing(call):
        while call.is_open():
            call.update(timeout=1.0)
            news = call.read_channel(ws_client.STDOUT_CHANNEL), call.read_channel(ws_client.STDERR_CHANNEL)
            output += news[0]
            complaint += news[1]
            if any(news):
                heard = time.monotonic()
            elif time.monotonic() - heard > seconds:
                raise ClusterError(f"{what} said nothing for {seconds:.0f} s")
        output += call.read_channel(ws_client.STDOUT_CHANNEL)
        complaint += call.read_channel(ws_client.STDERR_CHANNEL)
        ended = json.loads(call.read_channel(ws_client.ERROR_CHANNEL) or b"{}")
    if ended.get("status") != "Success":
        said = complaint.decode(errors="replace").strip()
        raise ClusterError(f"{what} failed: {said or ended.get('message', 'the connection broke')}")
    return bytes(output)


def _handshake(reason: str) -> tuple[int, str]:
    """Status and message of ``Handshake status 403 Forbidden -+-+- {headers} -+-+- {body}``; 0 where there is none."""
    found = re.match(r"Handshake status (\d+) ", reason)
    return (int(found[1]), _message(reason.rpartition("-+-+- ")[2].encode())) if found else (0, reason)


def _message(body: bytes) -> str:
    """The message of a ``Status`` object; other bodies as they are."""
    try:
        content = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip()
    return str(content.get("message", "")) if isinstance(content, dict) else str(content)


def _cause(error: BaseException) -> str:
    """The innermost of a chain of errors: the others only say that there was one."""
    inner = getattr(error, "reason", None)
    return _cause(inner) if isinstance(inner, BaseException) else str(error).rpartition(": ")[2] or repr(error)
