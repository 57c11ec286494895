# SPDX-License-Identifier: Apache-2.0
"""A small kubelet: runs the pod templates of Kubernetes manifests as processes of this machine.

It knows Kubernetes' objects and nothing of Tandem's: what a container does in a cluster it does here, because it gets
the same command, environment, files and signals. ``kubelet`` takes manifests, ``pod`` is the life of one pod,
``container`` of one container in it; ``supervisor`` sees to it that no process outlives us.
"""
