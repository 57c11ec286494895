# SPDX-License-Identifier: Apache-2.0
"""Hybrid pods, and the two programs that share their accelerators."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tandem_api.base import Contract
from tandem_api.kubernetes import Environment, PodOverlay, Resources
from tandem_api.scalars import Bytes, SomeBytes

Arguments = tuple[Annotated[str, Field(max_length=4096)], ...]


class Isolation(StrEnum):
    """How both containers of a pod get the same devices."""

    CLAIM = "Claim"
    SHARED = "Shared"


class Accelerators(Contract):
    """The devices of a hybrid pod; trainer and engine take turns on them."""

    count: int = Field(gt=0, le=64, description="Devices a pod; the pod runs one trainer rank on each.")
    device_class_name: str = Field(
        "gpu.nvidia.com", max_length=253, description="DeviceClass of the ResourceClaim that both containers share."
    )
    isolation: Isolation = Field(
        Isolation.CLAIM,
        description="Claim: both containers hold one DRA claim. Shared: for clusters without DRA, the trainer alone "
        "requests the devices as extended resources and the engine sees all devices of the node (weaker isolation: "
        "docs/security.md).",
    )
    resource_name: str = Field(
        "nvidia.com/gpu",
        max_length=253,
        description="Extended resource that the trainer requests with isolation Shared.",
    )


class HybridSpec(Contract):
    """The hybrid pods: each runs a trainer and an engine on the same accelerators."""

    replicas: int = Field(1, gt=0, le=4096, description="Hybrid pods.")
    accelerators: Accelerators | None = Field(
        None, description="Devices of each pod; absent: train and roll out on CPU."
    )
    ranks_per_pod: int = Field(
        1,
        gt=0,
        le=64,
        description="Trainer ranks a pod on CPU; with accelerators it is their count and this is ignored.",
    )
    template: PodOverlay = Field(
        default_factory=dict,
        description="Pod metadata and spec laid over the generated pod template: nodeSelector, tolerations, volumes, "
        "priorityClassName and so on.",
    )


class ProgramSpec(Contract):
    """What the operator's defaults for a container can be replaced with."""

    image: str | None = Field(None, max_length=512, description="Container image; absent: the operator's own version.")
    resources: Resources = Field(default_factory=dict, description="Kubernetes resource requests and limits.")
    env: Environment = Field((), max_length=256, description="Kubernetes environment variables added to the container.")
    extra_args: Arguments = Field((), max_length=256, description="Arguments added to the program's command line.")


class Parallelism(Contract):
    """How the model is spread over the trainer ranks."""

    tensor: int = Field(1, gt=0, le=64, description="Tensor parallel size.")
    pipeline: int = Field(1, gt=0, le=64, description="Pipeline parallel size.")
    context: int = Field(1, gt=0, le=64, description="Context parallel size.")
    expert: int = Field(1, gt=0, le=512, description="Expert parallel size.")


class DecayKind(StrEnum):
    CONSTANT = "Constant"
    LINEAR = "Linear"
    COSINE = "Cosine"


class OptimizerKind(StrEnum):
    ADAM = "Adam"


class Optimizer(Contract):
    """How the weights are updated."""

    kind: OptimizerKind = Field(OptimizerKind.ADAM, description="Adam (with decoupled weight decay).")
    learning_rate: float = Field(1e-6, gt=0, description="Learning rate of the first iteration.")
    decay: DecayKind = Field(DecayKind.CONSTANT, description="Course of the learning rate over spec.iterations.")
    final_learning_rate: float = Field(0.0, ge=0, description="Where a decaying learning rate ends.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(1e-8, gt=0, description="Term added to the denominator.")
    clip_grad_norm: float = Field(1.0, gt=0, description="Largest norm of the gradient over all weights.")
    reset_each_iteration: bool = Field(
        True,
        description="Forget the moments at the start of each iteration, since each is a new problem (section 2.3.2).",
    )


class Recompute(StrEnum):
    """Which activations are computed a second time in the backward pass instead of being kept."""

    NONE = "None"
    SELECTIVE = "Selective"
    FULL = "Full"


class TrainerSpec(ProgramSpec):
    """The Megatron-core trainer."""

    parallelism: Parallelism = Field(default_factory=Parallelism, description="How the model is spread over the ranks.")
    optimizer: Optimizer = Field(default_factory=Optimizer, description="How the weights are updated.")
    micro_batch_tokens: int = Field(
        16384,
        gt=0,
        le=2**31 - 1,
        description="Most tokens of a microbatch on one rank; samples are grouped by length to fill it.",
    )
    recompute: Recompute = Field(
        Recompute.NONE,
        description="What the backward pass computes again instead of keeping it, to save memory: Selective the MLP "
        "(or the experts) of each layer, Full all of each layer but its input.",
    )


class Release(StrEnum):
    """How the engine lets go of the device while the trainer works."""

    SLEEP = "Sleep"
    STOP = "Stop"
    KEEP = "Keep"


class EngineSpec(ProgramSpec):
    """The vLLM engine."""

    tensor_parallel: int = Field(1, gt=0, le=64, description="Tensor parallel size of the engine within a pod.")
    max_model_len: int = Field(4096, gt=1, le=2**31 - 1, description="Longest prompt and response together, in tokens.")
    max_concurrent: int = Field(256, gt=0, le=4096, description="Most trajectories that one engine works on at a time.")
    kv_cache: SomeBytes = Field(
        2**30, description="KV cache of a CPU engine (VLLM_CPU_KVCACHE_SPACE); no effect on a GPU."
    )
    release: Release = Field(
        Release.SLEEP,
        description="Sleep frees the engine's device memory and keeps the process; Stop ends the process; Keep frees "
        "nothing. Sleep falls back to Stop when what stays behind exceeds releaseBudget.",
    )
    release_budget: Bytes = Field(
        4 * 2**30,
        description="Most memory in use on any of the pod's devices after Sleep, whoever uses it: the driver does not "
        "say whose it is. The trainer's CUDA context and the handoff's buffers count as well.",
    )
