"""Whether a walk through nested lists, tuples and dicts ends soon: no cycles, few levels, little met many times."""

from __future__ import annotations

from typing import Any


def measured(value: Any, *, depth: int) -> int:
    """Return how many values a walk through lists, tuples and values of dicts meets, if shared ones count each time.

    Args:
        depth: most levels of containers.

    Raises:
        ValueError: something contains itself, or there are more levels; says what was expected and found.
    """
    done: dict[int, tuple[int, int]] = {}  # levels and values of each container
    entered: set[int] = set()
    pending = [value] if isinstance(value, dict | list | tuple) else []
    while pending:
        container = pending[-1]
        here = id(container)
        if here in done:
            pending.pop()
            continue
        inside = list(container.values()) if isinstance(container, dict) else container
        below = [item for item in inside if isinstance(item, dict | list | tuple)]
        if here in entered:
            pending.pop()
            levels = 1 + max((done[id(item)][0] for item in below), default=0)
            values = 1 + len(inside) - len(below) + sum(done[id(item)][1] for item in below)
            if levels > depth:
                raise ValueError(f"expected at most {depth} levels of containers, found more")
            done[here] = levels, values
        else:
            entered.add(here)
            for item in below:
                if id(item) in done:
                    continue
                # What has been entered and is not done is being walked through: `item` contains this container.
                if id(item) in entered:
                    raise ValueError("expected containers that end, found one that contains itself")
                pending.append(item)
    return done[id(value)][1] if id(value) in done else 1
