# SPDX-License-Identifier: Apache-2.0
"""Where everything of a cluster lies: its files, addresses and the tokens by which its parts know each other."""

import secrets
from dataclasses import dataclass
from pathlib import Path

GATEWAY = "10.88.0.1"
POD_NETWORK = "10.88.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
BRIDGE = "cni0"
NODE = "node"
SECOND_NODE = "node-2"
API_SERVER = f"https://{GATEWAY}:6443"
ETCD_CLIENT = "http://127.0.0.1:12379"
ETCD_PEER = "http://127.0.0.1:12380"
PAUSE_IMAGE = "localhost/pause:1"
# What a component may do follows from its user and group (Kubernetes' own default roles).
IDENTITIES = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "kubelet-2": (f"system:node:{SECOND_NODE}", "system:nodes"),
    "proxy": ("system:kube-proxy", ""),
}
# Linux keeps the path of a Unix socket in 108 bytes.
_LONGEST_SOCKET = "kubelet/plugins_registry/fake.tandem-rl.dev-reg.sock"
LONGEST_STATE = 107 - len(_LONGEST_SOCKET) - 1


@dataclass(frozen=True)
class Node:
    """One kubelet and its containerd, under `state`. What they have of their own is told apart by `suffix`.

    `cgroup`: where its pods' control groups begin, in every hierarchy; empty for the top.
    """

    state: Path
    name: str
    suffix: str = ""
    kubelet_port: int = 10250
    health_port: int = 10248
    cgroup: str = ""

    @property
    def kubelet(self) -> Path:
        return self.state / f"kubelet{self.suffix}"

    @property
    def pod_logs(self) -> Path:
        return self.state / f"pod-logs{self.suffix}"

    @property
    def containerd(self) -> Path:
        """Images, and what containers have written."""
        return self.state / f"containerd{self.suffix}"

    @property
    def containerd_run(self) -> Path:
        return self.state / f"run{self.suffix}"

    @property
    def containerd_socket(self) -> Path:
        return self.containerd_run / "containerd.sock"


@dataclass(frozen=True)
class Layout:
    """The files of one cluster, all under `state`. `bin` links to the programs that it was started with."""

    state: Path

    @property
    def bin(self) -> Path:
        return self.state / "bin"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def configuration(self) -> Path:
        """Generated configuration, keys and tokens: new for each start."""
        return self.state / "configuration"

    @property
    def processes(self) -> Path:
        """One JSON file for each process that was started."""
        return self.state / "processes"

    @property
    def node(self) -> Node:
        """The node that every cluster has. Its images are the one part that outlives `down`."""
        return Node(self.state, NODE)

    @property
    def second_node(self) -> Node:
        """The node that may join, and be lost."""
        return Node(self.state, SECOND_NODE, "-2", kubelet_port=11250, health_port=11248, cgroup=SECOND_NODE)

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.node, self.second_node

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def etcd(self) -> Path:
        return self.state / "etcd"

    @property
    def cdi(self) -> Path:
        return self.state / "cdi"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig: the file that users and tests are given."""
        return self.state / "kubeconfig"

    @property
    def certificate(self) -> Path:
        """The API server's certificate, which it signs itself: also the authority that its clients trust."""
        return self.configuration / "certificates" / "apiserver.crt"

    @property
    def token_file(self) -> Path:
        return self.configuration / "tokens.csv"

    def component_kubeconfig(self, component: str) -> Path:
        return self.kubeconfig if component == "admin" else self.configuration / f"{component}.kubeconfig"

    def token(self, component: str) -> str:
        user, _ = IDENTITIES[component]
        rows = (line.split(",") for line in self.token_file.read_text().splitlines())
        return next(row[0] for row in rows if row[1] == user)

    def write_tokens(self) -> None:
        rows = [f'{secrets.token_hex(16)},{user},{user},"{group}"' for user, group in IDENTITIES.values()]
        self.token_file.write_text("\n".join(rows) + "\n")
        self.token_file.chmod(0o600)
