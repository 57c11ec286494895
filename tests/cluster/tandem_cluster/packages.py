# SPDX-License-Identifier: Apache-2.0
"""The Debian packages that a test cluster and the image builds use."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tandem_cluster.errors import ClusterError

# Package -> a file that it installs.
NODE_PACKAGES: Mapping[str, str] = {
    "conntrack": "/usr/sbin/conntrack",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iproute2": "/usr/bin/ip",
    "nftables": "/usr/sbin/nft",
    "openssl": "/usr/bin/openssl",
    "runc": "/usr/sbin/runc",
}
IMAGE_PACKAGES: Mapping[str, str] = {
    "buildah": "/usr/bin/buildah",
    "debootstrap": "/usr/sbin/debootstrap",
    "runc": "/usr/sbin/runc",
}


def install_missing(packages: Mapping[str, str]) -> list[str]:
    """Installs those of `packages` whose file is absent, with apt-get, and returns their names."""
    missing = [package for package, file in packages.items() if not Path(file).exists()]
    if not missing:
        return []
    if shutil.which("apt-get") is None:
        raise ClusterError(f"these packages are missing and there is no apt-get to install them: {', '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        result = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise ClusterError(f"apt-get {' '.join(command)} failed; install these by hand:\n{result.stderr.strip()}")
    return missing
