"""The processes that torchrun, accelerate or a scheduler started for one command, and what they share."""

from ltm.processes.group import agreed, is_lead, joined, largest, local_device, lost, rank, world_size
from ltm.processes.sharing import from_lead, of_each

__all__ = [
    "agreed",
    "from_lead",
    "is_lead",
    "joined",
    "largest",
    "local_device",
    "lost",
    "of_each",
    "rank",
    "world_size",
]
