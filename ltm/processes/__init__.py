"""The processes that torchrun, accelerate or a scheduler started for one command, and what they share."""

from ltm.processes.group import agreed, alone, is_lead, joined, largest, local_device, lost, rank, world_size

__all__ = ["agreed", "alone", "is_lead", "joined", "largest", "local_device", "lost", "rank", "world_size"]
