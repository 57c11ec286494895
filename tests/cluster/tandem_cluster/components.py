# SPDX-License-Identifier: Apache-2.0
"""The processes of the cluster, in the order in which they start, with their flags and what makes each one ready."""

import json
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tandem_cluster.layout import (
    API_SERVER,
    ETCD_CLIENT,
    ETCD_PEER,
    GATEWAY,
    SERVICE_NETWORK,
    Layout,
    Node,
)

# Gang scheduling (scheduling.k8s.io) is alpha: the API server, the controllers and the scheduler must agree on it.
FEATURE_GATES = "--feature-gates=GenericWorkload=true,GangScheduling=true"
DRA_DRIVER = "fake.tandem-rl.dev"


@dataclass(frozen=True)
class Component:
    """One process: `ready` is polled, for `seconds` at most, before the next component starts."""

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 60.0


def kubectl(layout: Layout, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs kubectl as the administrator. The caller looks at the exit status."""
    command = [f"{layout.bin}/kubectl", "--kubeconfig", str(layout.kubeconfig), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def ctr(node: Node, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Runs containerd's own client in the namespace of the kubelet's images and containers."""
    return subprocess.run(ctr_command(node, *arguments), capture_output=True, check=False)


def ctr_command(node: Node, *arguments: str) -> list[str]:
    """For whoever needs its input or output as a stream."""
    address = ("--address", str(node.containerd_socket))
    return [f"{node.state}/bin/ctr", *address, "--namespace", "k8s.io", *arguments]


def _get(url: str, context: ssl.SSLContext | None = None, token: str = "") -> bool:
    """Whether a GET of `url` answers 200."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _etcd(layout: Layout) -> Component:
    command = [
        f"{layout.bin}/etcd",
        "--name=node",
        f"--data-dir={layout.etcd}",
        f"--listen-client-urls={ETCD_CLIENT}",
        f"--advertise-client-urls={ETCD_CLIENT}",
        f"--listen-peer-urls={ETCD_PEER}",
        f"--initial-advertise-peer-urls={ETCD_PEER}",
        f"--initial-cluster=node={ETCD_PEER}",
        # Nobody's data: what a power failure would lose is not worth a disk flush for each write.
        "--unsafe-no-fsync",
    ]
    return Component("etcd", command, lambda: _get(f"{ETCD_CLIENT}/health"))


def _api_server(layout: Layout) -> Component:
    files = layout.configuration
    command = [
        f"{layout.bin}/kube-apiserver",
        f"--advertise-address={GATEWAY}",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        f"--bind-address={GATEWAY}",
        f"--cert-dir={layout.certificate.parent}",
        f"--etcd-servers={ETCD_CLIENT}",
        FEATURE_GATES,
        f"--kubelet-client-certificate={files}/kubelet-client.crt",
        f"--kubelet-client-key={files}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--runtime-config=scheduling.k8s.io/v1alpha2=true",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={files}/accounts.key",
        f"--service-account-signing-key-file={files}/accounts.key",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--token-auth-file={layout.token_file}",
    ]

    def ready() -> bool:
        if not layout.certificate.exists():
            return False
        context = ssl.create_default_context(cafile=layout.certificate)
        return _get(f"{API_SERVER}/readyz", context, layout.token("admin"))

    return Component("kube-apiserver", command, ready)


def _controller_manager(layout: Layout) -> Component:
    command = [
        f"{layout.bin}/kube-controller-manager",
        "--bind-address=127.0.0.1",
        "--controllers=*",
        FEATURE_GATES,
        f"--kubeconfig={layout.component_kubeconfig('controller-manager')}",
        "--leader-elect=false",
        f"--root-ca-file={layout.certificate}",
        f"--service-account-private-key-file={layout.configuration}/accounts.key",
        "--use-service-account-credentials=true",
    ]
    return Component(
        "kube-controller-manager",
        command,
        lambda: kubectl(layout, "get", "serviceaccount", "default").returncode == 0,
    )


def _scheduler(layout: Layout) -> Component:
    command = [
        f"{layout.bin}/kube-scheduler",
        "--bind-address=127.0.0.1",
        FEATURE_GATES,
        f"--kubeconfig={layout.component_kubeconfig('scheduler')}",
        "--leader-elect=false",
    ]
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return Component("kube-scheduler", command, lambda: _get("https://127.0.0.1:10259/readyz", context))


def _containerd(layout: Layout, node: Node) -> Component:
    name = f"containerd{node.suffix}"
    command = [f"{layout.bin}/containerd", "--config", f"{layout.configuration}/{name}.toml"]

    def ready() -> bool:
        return ctr(node, "version").returncode == 0

    # containerd finds its shim by name.
    return Component(name, command, ready, environment={"PATH": f"{layout.bin}:/usr/sbin:/usr/bin:/sbin:/bin"})


def _kubelet(layout: Layout, node: Node) -> Component:
    name = f"kubelet{node.suffix}"
    command = [
        f"{layout.bin}/kubelet",
        f"--config={layout.configuration}/{name}.json",
        f"--hostname-override={node.name}",
        f"--kubeconfig={layout.component_kubeconfig(name)}",
        f"--node-ip={GATEWAY}",
        f"--root-dir={node.kubelet}",
    ]

    def ready() -> bool:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        return kubectl(layout, "get", "node", node.name, "-o", path).stdout == "True"

    return Component(name, command, ready)


def _proxy(layout: Layout) -> Component:
    command = [f"{layout.bin}/kube-proxy", f"--config={layout.configuration}/proxy.json"]
    return Component("kube-proxy", command, lambda: _get("http://127.0.0.1:10256/livez"))


def _coredns(layout: Layout) -> Component:
    command = [f"{layout.bin}/coredns", "-conf", f"{layout.configuration}/Corefile"]

    def ready() -> bool:
        with socket.socket() as connection:
            return connection.connect_ex((GATEWAY, 53)) == 0

    return Component("coredns", command, ready)


def _volumes(layout: Layout) -> Component:
    command = [
        f"{layout.bin}/hostpath-volumes",
        f"--kubeconfig={layout.component_kubeconfig('admin')}",
        f"--root={layout.volumes}",
    ]
    return Component("hostpath-volumes", command, lambda: True)


def _dra_driver(layout: Layout, devices: int) -> Component:
    command = [
        f"{layout.bin}/fake-dra-driver",
        f"--cdi-dir={layout.cdi}",
        f"--devices={devices}",
        f"--kubeconfig={layout.component_kubeconfig('admin')}",
        f"--kubelet-root={layout.node.kubelet}",
        f"--node-name={layout.node.name}",
    ]

    def ready() -> bool:
        slices = kubectl(layout, "get", "resourceslices", "-o", "json").stdout or "{}"
        return any(found["spec"]["driver"] == DRA_DRIVER for found in json.loads(slices).get("items", []))

    return Component("fake-dra-driver", command, ready)


def store(layout: Layout) -> list[Component]:
    """What must run before a kubeconfig can be written."""
    return [_etcd(layout), _api_server(layout)]


def controllers(layout: Layout) -> list[Component]:
    """What a cluster without nodes has besides."""
    return [_controller_manager(layout)]


def of_node(layout: Layout, node: Node) -> list[Component]:
    """What each node has of its own."""
    return [_containerd(layout, node), _kubelet(layout, node)]


def with_node(layout: Layout, devices: int) -> list[Component]:
    """The rest: the first node, and what only a cluster with nodes needs. The fake driver publishes `devices`."""
    return [
        _scheduler(layout),
        *of_node(layout, layout.node),
        _proxy(layout),
        _coredns(layout),
        _volumes(layout),
        _dra_driver(layout, devices),
    ]


def objects() -> list[dict[str, Any]]:
    """What a cluster's administrator would install: the default StorageClass and the class of the fake devices."""
    storage: dict[str, Any] = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "hostpath", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "hostpath.tandem-rl.dev",
    }
    device: dict[str, Any] = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": DRA_DRIVER},
        "spec": {"selectors": [{"cel": {"expression": f"device.driver == '{DRA_DRIVER}'"}}]},
    }
    return [storage, device]
