"""The stages of a ResNet, told by the names of its parameters."""

import re


def units_of(shapes: dict) -> tuple[int, ...]:
    """Units in each stage of a ResNet, by the names of their first convolutions."""
    found = [re.fullmatch(r"block(\d+)/unit(\d+)/conv1/kernel", name) for name in shapes]
    stages: dict[int, int] = {}
    for match in filter(None, found):
        stages[int(match[1])] = max(stages.get(int(match[1]), 0), int(match[2]))
    return tuple(stages[b] for b in sorted(stages))


def stride_of(shapes: dict) -> int:
    """Pixels along one side of a place in a stem's last feature map; 1 without a stem."""
    if "conv_root/kernel" not in shapes:
        return 1
    return 4 * 2 ** max(len(units_of(shapes)) - 1, 0)
