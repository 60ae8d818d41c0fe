"""Damaged variants of valid files: of their bytes, and of the values in their JSON; a pure function of a seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

TOKENS = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b"\t", b",", b":", b'"', b"'", b"{", b"}", b"[", b"]",
    b"-", b"[" * 3000, b'{"a":' * 3000, b"NaN", b"-Infinity", b"1e999", b"-1", b"null", b"true", b'"\\ud800"',
    b"9" * 5000, b"../../x", b"/etc/passwd", b"&a [*a]", b"<<: *a", b"!!int x", b"!!python/object:os.system", b"0x",
    b"%s", b"PK\3\4", b"\x1f\x8b\x08", b"PAR1", b"ARROW1\0\0", b"\x80\x04\x95", b"\xed\xa0\x80", b"e" * 999,
    "\u2028\u0000\U0010ffff".encode(),
)  # fmt: skip
"""Bytes that mean something to one of the formats."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**200, 1.5, float("nan"), float("inf"), 1e308, "", "x", "\0",
    "../../x", "/etc/passwd", "\ud800", "9" * 50, "nan", [], [[]], [None], {}, {"": {}}, {"a": "b"}, [1, "x", None, {}],
    "a" * 2000, "True",
)  # fmt: skip
"""Values that a reader may not expect where they stand."""


def mutated(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """One to four changes of the bytes: flips, cuts, repeats, tokens, stretches of another valid file."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        start = random.randrange(len(content) + 1)
        stop = min(len(content), start + random.choice((1, 1, 2, 4, 16, 256, 4096)))
        kind = random.randrange(8)
        if kind == 0 and start < len(content):
            content[start] ^= 1 << random.randrange(8)
        elif kind == 1 and start < len(content):
            content[start] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind == 2:
            del content[start:]
        elif kind == 3:
            del content[start:stop]
        elif kind == 4:
            content[start:start] = content[start:stop] * random.choice((1, 2, 50))
        elif kind == 5:
            content[start : stop if random.random() < 0.5 else start] = random.choice(TOKENS)
        elif kind == 6:
            other = random.choice(others)
            begin = random.randrange(len(other) + 1)
            content[start:stop] = other[begin : begin + random.choice((4, 64, 4096))]
        else:
            content[start:stop] = bytes(stop - start)
    return bytes(content)


def mutated_json(value: Any, random: Random) -> Any:
    """One to four values of a tree replaced, left out, renamed, repeated or put one level down."""
    tree = [copy.deepcopy(value)]
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        holder: Any = tree
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = random.choice(keys)
            if isinstance(holder[key], dict | list) and random.random() < 0.8:
                holder = holder[key]
                continue
            _change(holder, key, random)
            break
    return tree[0] if tree else None


def _change(holder: Any, key: Any, random: Random) -> None:
    kind = random.randrange(6)
    if kind == 0 and len(holder) > 1:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[random.choice(("x", "_x", "", "__class__", key * 2))] = holder.pop(key)
    elif kind == 2:
        holder[key] = [holder[key]]
    elif kind == 3 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * random.choice((-1, 2, 10**6, 0.5))
    else:
        holder[key] = copy.deepcopy(random.choice(VALUES))


def json_bytes(value: Any) -> bytes:
    """A tree as a careless program would write it, lone surrogates and all."""
    return json.dumps(value).encode()
