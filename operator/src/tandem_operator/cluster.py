# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API: the only module that talks to it, apart from kopf's own watch of RLJobs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import kopf
import msgspec

from tandem_api import API_VERSION, KIND
from tandem_api.errors import TandemError, TryAgain
from tandem_operator import metrics
from tandem_operator.plan.identity import MANAGER, Manifest
from tandem_operator.plan.platform import Capabilities, Gang

PLURALS = {
    KIND: "rljobs",
    "ConfigMap": "configmaps",
    "Event": "events",
    "Job": "jobs",
    "Lease": "leases",
    "NetworkPolicy": "networkpolicies",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "PodGroup": "podgroups",
    "PodMonitor": "podmonitors",
    "ResourceClaimTemplate": "resourceclaimtemplates",
    "Secret": "secrets",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
}
_REQUEST_SECONDS = 30.0
_WATCH_SECONDS = 290
_PAGE = 500
_LOGIN_SECONDS = 300.0
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_POD_LEVEL_RESOURCES_SINCE = (1, 34)
# Server-side apply answers 500 to a field that a built-in kind does not have.
_UNKNOWN_FIELD = "failed to create typed patch object"


class Refused(TandemError):
    """The API server understood the request and says no; the same request will not succeed later by itself."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class Expired(TandemError):
    """A watch fell too far behind; list again."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind as it is addressed in URLs."""

    api_version: str
    name: str

    @staticmethod
    def of(manifest: Manifest) -> "Kind":
        return Kind(manifest["apiVersion"], manifest["kind"])

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        scope = f"/namespaces/{namespace}" if namespace else ""
        parts = [f"{root}{scope}/{PLURALS[self.name]}", name, subresource]
        return "/".join(part for part in parts if part)


RLJOB = Kind(API_VERSION, KIND)
JOB = Kind("batch/v1", "Job")
POD = Kind("v1", "Pod")
SECRET = Kind("v1", "Secret")
EVENT = Kind("v1", "Event")
LEASE = Kind("coordination.k8s.io/v1", "Lease")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a kind to list and watch."""

    kind: Kind
    namespace: str | None = None
    labels: str = ""
    fields: str = ""
    metadata_only: bool = False

    @property
    def query(self) -> dict[str, str]:
        given = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True, slots=True)
class Seen:
    """One event of a watch."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Manifest


class Cluster:
    """A session with the API server. Use as ``async with Cluster(login) as cluster``.

    ``login`` is called again every few minutes, since tokens of service accounts rotate. Every call raises
    :class:`Refused` for an answer that says no, and :class:`TryAgain` when there is none or the server is overloaded.
    """

    def __init__(self, login: Callable[[], kopf.ConnectionInfo], connections: int = 64) -> None:
        self._login = login
        self._connections = connections
        self._credentials = login()
        self._logged_in = time.monotonic()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=self._connections, ssl=self._credentials.as_ssl_context())
        self._session = aiohttp.ClientSession(self._credentials.server, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def _headers(self, **headers: str) -> dict[str, str]:
        if time.monotonic() - self._logged_in > _LOGIN_SECONDS:
            self._credentials, self._logged_in = self._login(), time.monotonic()
        return {"User-Agent": "tandem-operator", "Accept": "application/json"} | (
            self._credentials.as_http_headers() | headers
        )

    async def _request(
        self,
        verb: str,
        path: str,
        kind: str,
        query: Mapping[str, str] = {},
        body: Any = None,
        headers: Mapping[str, str] = {},
    ) -> Any:
        assert self._session is not None, "enter the Cluster first"
        data = None if body is None else msgspec.json.encode(body)
        code = "none"
        try:
            async with self._session.request(
                verb,
                path,
                params=query,
                data=data,
                headers=self._headers(**headers),
                timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
            ) as response:
                code = str(response.status)
                answer = msgspec.json.decode(await response.read())
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            raise TryAgain(f"the API server did not answer {verb} {path}: {error or 'timeout'}") from error
        finally:
            metrics.requests.labels(verb, kind, code).inc()
        _raise_for(int(code), answer)
        return answer

    async def apply(self, manifest: Manifest, dry_run: bool = False) -> None:
        """Server-side apply as ``tandem``, taking over fields that others hold."""
        metadata, kind = manifest["metadata"], Kind.of(manifest)
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        query |= {"dryRun": "All"} if dry_run else {}
        path = kind.path(metadata.get("namespace"), metadata["name"])
        await self._request("PATCH", path, kind.name, query, manifest, {"Content-Type": _APPLY, "Accept": _METADATA})

    async def create(self, manifest: Manifest) -> bool:
        """Create an object; False if there is one of that name already."""
        kind = Kind.of(manifest)
        path = kind.path(manifest["metadata"].get("namespace"))
        try:
            headers = {"Content-Type": "application/json", "Accept": _METADATA}
            query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
            await self._request("POST", path, kind.name, query, manifest, headers)
        except Refused as refusal:
            if refusal.reason == "AlreadyExists":
                return False
            raise
        return True

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """The object; None if there is none."""
        try:
            found: Manifest = await self._request("GET", kind.path(namespace, name), kind.name)
        except Refused as refusal:
            if refusal.code == 404:
                return None
            raise
        return found

    async def replace(self, manifest: Manifest) -> Manifest:
        """Write back what was read; refused with reason Conflict if someone else wrote meanwhile."""
        metadata, kind = manifest["metadata"], Kind.of(manifest)
        path = kind.path(metadata.get("namespace"), metadata["name"])
        answer: Manifest = await self._request(
            "PUT", path, kind.name, {"fieldManager": MANAGER}, manifest, {"Content-Type": "application/json"}
        )
        return answer

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: Manifest, subresource: str = ""
    ) -> Manifest | None:
        """Merge a patch into an object; None if there is none any more."""
        path = kind.path(namespace, name, subresource)
        try:
            answer: Manifest = await self._request(
                "PATCH", path, kind.name, {"fieldManager": MANAGER}, patch, {"Content-Type": _MERGE}
            )
        except Refused as refusal:
            if refusal.code == 404:
                return None
            raise
        return answer

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> None:
        """Delete an object, and in the background what it owns; fine if there is none, or another than ``uid``."""
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            await self._request(
                "DELETE",
                kind.path(namespace, name),
                kind.name,
                body=options,
                headers={"Content-Type": "application/json"},
            )
        except Refused as refusal:
            if refusal.code not in (404, 409):
                raise

    async def list(self, selection: Selection) -> tuple[list[Manifest], str]:
        """All selected objects, and the resource version from which to watch on."""
        items: list[Manifest] = []
        query = {**selection.query, "limit": str(_PAGE)}
        headers = {"Accept": _METADATA.replace("PartialObjectMetadata", "PartialObjectMetadataList")}
        while True:
            page = await self._request(
                "GET",
                selection.kind.path(selection.namespace),
                selection.kind.name,
                query,
                headers=headers if selection.metadata_only else {},
            )
            items += page.get("items") or ()
            if not (token := page["metadata"].get("continue")):
                return items, page["metadata"]["resourceVersion"]
            query["continue"] = token

    async def watch(self, selection: Selection, version: str) -> AsyncIterator[Seen]:
        """Changes after ``version``, until the server ends the watch; then watch on from the last version seen.

        Raises:
            Expired: that version is too old.
        """
        assert self._session is not None, "enter the Cluster first"
        query = {
            **selection.query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        headers = self._headers(**({"Accept": _METADATA} if selection.metadata_only else {}))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_REQUEST_SECONDS, sock_read=_WATCH_SECONDS + 30)
        metrics.requests.labels("WATCH", selection.kind.name, "200").inc()
        try:
            async with self._session.get(
                selection.kind.path(selection.namespace), params=query, headers=headers, timeout=timeout
            ) as response:
                if response.status != 200:
                    _raise_for(response.status, await response.json(content_type=None))
                async for line in _lines(response.content):
                    yield _seen(msgspec.json.decode(line))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TryAgain(f"the watch of {selection.kind.name} broke: {error}") from error

    async def discover(self) -> Capabilities:
        """What this API server serves."""
        version, groups = await asyncio.gather(
            self._request("GET", "/version", "version"),
            self._request("GET", "/apis", "APIGroup", headers={"Accept": _DISCOVERY}),
        )
        served = {
            (f"{group['metadata']['name']}/{api['version']}", resource["resource"])
            for group in groups["items"]
            for api in group["versions"]
            for resource in api.get("resources", ())
        }
        release = (int(version["major"]), int(version["minor"].rstrip("+")))
        return Capabilities(
            pod_level_resources=release >= _POD_LEVEL_RESOURCES_SINCE,
            resource_api=next(
                (
                    api
                    for api in ("resource.k8s.io/v1", "resource.k8s.io/v1beta2")
                    if (api, "resourceclaimtemplates") in served
                ),
                None,
            ),
            gang=next((gang for gang in Gang if (gang.value, "podgroups") in served), None),
            pod_monitor=("monitoring.coreos.com/v1", "podmonitors") in served,
        )


def _raise_for(code: int, answer: Any) -> None:
    if code < 400:
        return
    status = answer if isinstance(answer, dict) else {}
    message = str(status.get("message", f"HTTP {code}"))
    if _UNKNOWN_FIELD in message:
        raise Refused(422, "Invalid", message)
    if code in (401, 429, 500, 502, 503, 504):
        raise TryAgain(f"the API server answered {code}: {message}")
    if code == 410:
        raise Expired(message)
    raise Refused(code, str(status.get("reason", code)), message)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length; aiohttp's own line reader refuses long ones."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _seen(raw: dict[str, Any]) -> Seen:
    if raw["type"] == "ERROR":
        _raise_for(int(raw["object"].get("code", 500)), raw["object"])
    return Seen(raw["type"], raw["object"])
