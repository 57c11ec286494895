# SPDX-License-Identifier: Apache-2.0
"""What a peer that is broken, of another version, or hostile might send."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

_SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 2**31, 2**53, 2**63, 2**64, 10**40, -(2**63) - 1])
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "NaN", "../../etc/passwd", "\x00", "\ud800", "9" * 5000, "a" * 100_000])
)
VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))
"""Any JSON value, with a liking for edges."""

LEASE_REQUEST = {"member": 0, "incarnation": "a", "epoch": 1, "capacity": 4, "running": ["t"]}
"""One that is answered at once: a ``wait`` would be a long poll."""
_SEGMENT = {
    "trajectory": "t",
    "offset": 0,
    "tokens": [1, 2],
    "logprobs": [-0.5, -0.25],
    "versions": [{"version": 1, "count": 2}],
    "finish": "Stop",
}
SEGMENT_BATCH = {"member": 0, "incarnation": "a", "epoch": 1, "segments": [_SEGMENT]}


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


@st.composite
def mutants(draw: st.DrawFn, valid: Any) -> Any:
    """A valid JSON value with up to three parts of it replaced, removed or doubled."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(_places(value)[1:] or [("nothing",)]))
        parent = value
        for key in path:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "remove", "double"])):
            case "replace":
                parent[last] = draw(VALUES)
            case "remove" if isinstance(parent, dict):
                parent.pop(last, None)
            case _ if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[last]))
    return value


def bodies(valid: Any) -> st.SearchStrategy[bytes]:
    """Bytes that may or may not be a message: mutants of a valid one, any JSON, cut JSON, any bytes."""
    text = mutants(valid).map(lambda value: json.dumps(value).encode())
    whole = text | VALUES.map(lambda value: json.dumps(value).encode())
    cut = st.tuples(whole, st.integers(0, 200)).map(lambda pair: pair[0][: pair[1]])
    nested = st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"\xef\xbb\xbf{}"])
    return whole | cut | nested | st.binary(max_size=200)
