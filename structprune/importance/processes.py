"""Sums over the processes of a distributed run, after which all of them know the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from ..errors import StructPruneError


def several() -> bool:
    """Whether this is one of several processes of an initialised `torch.distributed`."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first() -> bool:
    """Whether this process is the one that talks."""
    return not several() or distributed.get_rank() == 0


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, on the CPU; every process gets the same bits."""
    if not several():
        return values.cpu()
    device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
    total = values.to(device, copy=True)
    distributed.all_reduce(total)
    return total.cpu()


def gathered(value: Any) -> list[Any]:
    """What each process has, by rank."""
    if not several():
        return [value]
    found = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


@contextmanager
def failing_together() -> Iterator[None]:
    """If one process fails inside, all raise: none is left waiting for a sum that never comes."""
    failure: str | None = "interrupted"
    try:
        yield
        failure = None
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        raise
    finally:
        failures = gathered(failure)
    for rank, found in enumerate(failures):
        if found is not None:
            raise StructPruneError(f"process {rank} failed, so all stop: {found}")
