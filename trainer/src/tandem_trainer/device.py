# SPDX-License-Identifier: Apache-2.0
"""The accelerator that training runs on, or a stand-in for one on a machine that has none.

Megatron-core names ``cuda`` throughout. On a CPU a small function mode turns those names into the CPU, so that
everything above this module is the same code on both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class CudaOnCpu(TorchFunctionMode):
    """Runs code written for CUDA on a CPU. Holds for the thread that entered it, as torch's modes do."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.pin_memory:
            # A pinned copy is a copy: the identity would alias it, and freeing the original would lose both.
            return args[0].clone()
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron tells dtypes of a device apart by names such as torch.cuda.FloatTensor.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if func is torch.Tensor.to:
            args = tuple(_on_cpu(argument) for argument in args)
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        return func(*args, **kwargs)


def _on_cpu(argument: Any) -> Any:
    if isinstance(argument, (str, torch.device)) and "cuda" in str(argument):
        return torch.device("cpu")
    return argument


def _with_plain_splits(all_to_all: Callable[..., Any]) -> Callable[..., Any]:
    """Megatron makes lists of the splits on their way from the device, which a CPU's do not take."""

    def call(group: Any, tensor: Any, output_splits: Any = None, input_splits: Any = None, **options: Any) -> Any:
        return all_to_all(group, tensor, _plain(output_splits), _plain(input_splits), **options)

    return call


def _plain(splits: Any) -> Any:
    return splits.tolist() if isinstance(splits, torch.Tensor) else splits


def _uncompiled(model: Any = None, **_: Any) -> Any:
    """What ``torch.compile`` is on a CPU: nothing, as a function and as a decorator with arguments."""
    return (lambda function: function) if model is None else model


class _NoStream:
    """What a CPU has in place of a CUDA stream: everything is in order already."""

    def wait_event(self, event: object) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self) -> "_NoStream":
        return self


_IN_ORDER = _NoStream()


class Device:
    """What a rank computes on. On a CPU there is one memory for all, and leaving it to the engine is nothing.

    Attributes:
        copies: a stream for copies to and from the host.
    """

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device
        self.accelerated = torch_device.type == "cuda"
        self.copies: Any = torch.cuda.Stream(torch_device) if self.accelerated else _IN_ORDER

    @property
    def backend(self) -> str:
        """torch.distributed's name for what this device communicates over."""
        return "cpu:gloo,cuda:nccl" if self.accelerated else "gloo"

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Enqueue on the stream of copies, after everything that the caller has enqueued so far."""
        self.copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.copies):
            yield


@contextmanager
def activate(local_rank: int) -> Iterator[Device]:
    """Take this rank's device for the calling thread.

    Without an accelerator this patches the few functions of ``torch.cuda`` that no function mode can see, for the
    whole process: it is meant for a process that does nothing but train.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        yield Device(torch.device("cuda", local_rank))
        return
    # On a CPU it needs a C++ compiler, which images do not have; and Megatron's decorators import it for seconds.
    torch.compile = _uncompiled
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.current_stream = lambda device=None: _IN_ORDER
    torch.cuda.stream = lambda stream: nullcontext()
    with CudaOnCpu():
        from megatron.core.tensor_parallel import random
        from megatron.core.transformer.moe import token_dispatcher

        token_dispatcher.MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = _IN_ORDER
        token_dispatcher.all_to_all = _with_plain_splits(token_dispatcher.all_to_all)
        random.CudaRNGStatesTracker.fork = lambda self, name="": nullcontext()
        # What is computed again in the backward pass starts from the generators' states, of which a CPU has one.
        random._get_cuda_rng_state = lambda *_, **__: torch.empty(0)
        random._set_cuda_rng_state = lambda *_, **__: None
        yield Device(torch.device("cpu"))
