"""What the processes of a launch agree on."""

from typing import TypeVar

T = TypeVar("T")


def shared(value: T) -> T:
    """The first process's value, on every process; all call it at the same point. Alone, it is the value itself."""
    from accelerate.utils import broadcast_object_list

    first: T = broadcast_object_list([value])[0]
    return first
