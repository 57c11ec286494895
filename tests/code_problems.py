# SPDX-License-Identifier: Apache-2.0
"""Small programming problems with generators, right solutions and known wrong ones."""

from typing import Any

SUM = {
    "generator": """
from cyaron import *
n = int(input())
numbers = [randint(-10 ** 6, 10 ** 6) for _ in range(n % 7 + 3)]
print(len(numbers))
print(*numbers)
""",
    "right": (
        "input(); print(sum(map(int, input().split())))",
        "n = int(input())\ntotal = 0\nfor word in input().split():\n    total += int(word)\nprint(total)  ",
        "import sys\nprint(sum(map(int, sys.stdin.read().split()[1:])))\n\n",
    ),
    # Forgets negative numbers; stops early; does not end; crashes.
    "wrong": (
        "input(); print(sum(abs(int(x)) for x in input().split()))",
        "input(); print(sum(map(int, input().split()[:2])))",
        "while True: pass",
        "raise ValueError",
    ),
}

DIAMETER = {
    "generator": """
from cyaron import *
tree = Graph.tree(int(input()) % 30 + 5, 0.3, 0.3)
print(len(tree.edges) - 1)
print(tree.to_str(shuffle=True, output=Edge.unweighted_edge))
""",
    "right": (
        """
import sys
def far(start):
    seen, row, last = {start}, [(start, 0)], (start, 0)
    for node, distance in row:
        last = (node, distance)
        for other in near[node]:
            if other not in seen:
                seen.add(other)
                row.append((other, distance + 1))
    return last
words = list(map(int, sys.stdin.read().split()))
near = {node: [] for node in range(1, words[0] + 1)}
for a, b in zip(words[1::2], words[2::2]):
    near[a].append(b)
    near[b].append(a)
print(far(far(1)[0])[1])
""",
    ),
    # Looks from the first node only.
    "wrong": (
        """
import sys
words = list(map(int, sys.stdin.read().split()))
near = {node: [] for node in range(1, words[0] + 1)}
for a, b in zip(words[1::2], words[2::2]):
    near[a].append(b)
    near[b].append(a)
depth, row = {1: 0}, [1]
for node in row:
    for other in near[node]:
        if other not in depth:
            depth[other] = depth[node] + 1
            row.append(other)
print(max(depth.values()))
""",
    ),
}


def problem(name: str, kind: dict[str, Any], right: int, wrong: int = 0, **fields: Any) -> dict[str, Any]:
    """A line of the input with so many right and wrong submissions."""
    submissions = [kind["right"][n % len(kind["right"])] for n in range(right)]
    submissions += [kind["wrong"][n % len(kind["wrong"])] for n in range(wrong)]
    made = {"id": name, "prompt": f"Solve {name}.", "generator": kind["generator"], "submissions": submissions}
    return made | fields
