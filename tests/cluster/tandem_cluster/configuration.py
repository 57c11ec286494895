# SPDX-License-Identifier: Apache-2.0
"""Writes the files by which the components are configured."""

import base64
import json
import shutil
import subprocess
from typing import Any

from tandem_cluster.errors import ClusterError
from tandem_cluster.layout import API_SERVER, BRIDGE, GATEWAY, IDENTITIES, NODE, PAUSE_IMAGE, POD_NETWORK, Layout, Node


def _openssl(*arguments: str) -> None:
    result = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"openssl {' '.join(arguments)} failed: {result.stderr.strip()}")


def _write_keys(layout: Layout) -> None:
    """The service accounts' signing key, and the certificate by which the API server enters the kubelet."""
    directory = layout.configuration
    _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", f"{directory}/accounts.key")
    client = ["-keyout", f"{directory}/kubelet-client.key", "-out", f"{directory}/kubelet-client.crt"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "365"]
    _openssl("req", "-x509", *curve, "-subj", "/O=system:masters/CN=kube-apiserver-kubelet-client", *client)


def _kubelet(layout: Layout, node: Node) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": GATEWAY,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{layout.configuration}/kubelet-client.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        # Each kubelet ends what it does not know below its own.
        "cgroupRoot": f"/{node.cgroup}",
        "clusterDNS": [GATEWAY],
        "clusterDomain": "cluster.local",
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        "containerRuntimeEndpoint": f"unix://{node.containerd_socket}",
        # A disk that is nearly full is the machine's ordinary state, and images cannot be pulled again.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "failCgroupV1": False,
        "failSwapOn": False,
        "healthzPort": node.health_port,
        "makeIPTablesUtilChains": False,
        "maxPods": 250,
        "podLogsDir": str(node.pod_logs),
        "port": node.kubelet_port,
        "resolvConf": f"{layout.configuration}/resolv.conf",
        "serializeImagePulls": False,
    }


def _proxy(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": GATEWAY,
        "clientConnection": {"kubeconfig": str(layout.component_kubeconfig("proxy"))},
        # Connection tracking keeps the host's limits: they need privileges that a container of ours may lack.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "hostnameOverride": NODE,
        "mode": "nftables",
        # Pods share one bridge: without masquerading, a Service's answer would go back beside the proxy's rules.
        "nftables": {"masqueradeAll": True},
    }


def _kubeconfig(layout: Layout, component: str) -> dict[str, Any]:
    authority = base64.b64encode(layout.certificate.read_bytes()).decode()
    cluster = {"server": API_SERVER, "certificate-authority-data": authority}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tandem", "cluster": cluster}],
        "users": [{"name": component, "user": {"token": layout.token(component)}}],
        "contexts": [{"name": "tandem", "context": {"cluster": "tandem", "user": component}}],
        "current-context": "tandem",
    }


def _network(layout: Layout) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": f"{layout.state}/addresses",
            "ranges": [[{"subnet": POD_NETWORK}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": "tandem", "plugins": [bridge]}


def _containerd(layout: Layout, node: Node) -> str:
    # Without CAP_SYS_RESOURCE nobody may lower an OOM score: restrict_oom_score_adj keeps runc from trying.
    return f"""\
version = 3
root = "{node.containerd}"
state = "{node.containerd_run}"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
address = "{node.containerd_socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{node.containerd}/opt"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
cdi_spec_dirs = ["{layout.cdi}"]

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{layout.configuration}/cni"
"""


def _corefile(layout: Layout) -> str:
    return f"""\
.:53 {{
    bind {GATEWAY}
    errors
    kubernetes cluster.local {{
        kubeconfig {layout.component_kubeconfig("admin")} tandem
        ttl 1
    }}
}}
"""


def write_configuration(layout: Layout) -> None:
    """Writes all that does not depend on the API server's certificate. Replaces what an earlier start left."""
    shutil.rmtree(layout.configuration, ignore_errors=True)
    (layout.configuration / "cni").mkdir(parents=True)
    layout.configuration.chmod(0o700)
    layout.write_tokens()
    _write_keys(layout)
    (layout.configuration / "cni" / "10-tandem.conflist").write_text(json.dumps(_network(layout)))
    for node in layout.nodes:
        (layout.configuration / f"containerd{node.suffix}.toml").write_text(_containerd(layout, node))
        (layout.configuration / f"kubelet{node.suffix}.json").write_text(json.dumps(_kubelet(layout, node)))
    (layout.configuration / "proxy.json").write_text(json.dumps(_proxy(layout)))
    (layout.configuration / "Corefile").write_text(_corefile(layout))
    (layout.configuration / "resolv.conf").write_text("")


def write_kubeconfigs(layout: Layout) -> None:
    """Writes a kubeconfig for each identity, once the API server has made its certificate."""
    for component in IDENTITIES:
        file = layout.component_kubeconfig(component)
        file.touch(mode=0o600)
        file.write_text(json.dumps(_kubeconfig(layout, component), indent=1) + "\n")
