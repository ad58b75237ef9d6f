"""One training run in several processes, as `torchrun` starts them: who one is, and what all agree on.

Each process draws and computes its share of the global batch; gradients are averaged between them. Processes find one
another through the environment that `torchrun` sets; without it there is one process, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from liif_cli.errors import UsageError

# All wait while the first decodes the pictures or scores the model.
PATIENCE = timedelta(hours=4)


class Processes(NamedTuple):
    """The processes of a run."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Which samples of a global batch are this process's. Raises UsageError where they cannot be equally many."""
        if batch % self.world:
            raise UsageError(f"batch = {batch} cannot be shared by {self.world} processes: make it a multiple of them")
        size = batch // self.world
        return range(self.rank * size, (self.rank + 1) * size)

    def mean(self, values: Tensor) -> Tensor:
        """The processes' mean of a tensor."""
        if self.world > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
            values /= self.world
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag of any process is set."""
        return flag if self.world == 1 else bool(self.mean(torch.tensor(float(flag), device=device)) > 0)

    def agree(self, number: int, device: torch.device) -> bool:
        """Whether all processes have the same number."""
        return self.world == 1 or float(self.mean(torch.tensor(number, dtype=torch.float64, device=device))) == number

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            torch.distributed.barrier()


def environment() -> Processes:
    """The processes that `torchrun` says there are. Raises UsageError where it did not say it in numbers, and where a
    batch system has started several without it: each would take itself for the only one."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "WORLD_SIZE" not in os.environ and tasks.isdecimal() and int(tasks) > 1:
        raise UsageError(
            f"SLURM has started {tasks} of this, and they do not know of each other. Start torchrun once a node: srun"
            " --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc-per-node=GPUS --rdzv-backend=c10d"
            " --rdzv-endpoint=HOST:29500 -m liif_cli train ... Runs that are each their own say so by WORLD_SIZE=1"
        )
    return Processes(_number("RANK"), max(1, _number("WORLD_SIZE")), _number("LOCAL_RANK"))


def _number(name: str) -> int:
    text = os.environ.get(name, "0")
    if not text.isdecimal():
        raise UsageError(f"{name}={text!r} in the environment: torchrun sets it to a number; start that, or unset it")
    return int(text)


@contextlib.contextmanager
def joined(processes: Processes, device: torch.device) -> Iterator[None]:
    """Within the block the processes can talk to one another."""
    if processes.world == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield
    # Not after an error: it waits for processes that wait for this one. Its message comes first, and its end is theirs.
    torch.distributed.destroy_process_group()
