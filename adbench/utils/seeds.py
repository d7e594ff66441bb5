"""Seeds derived by hashing, so that no draw depends on order, batch size, device or worker."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed that depends on ``seed`` and on every one of ``names`` (compared by their text).

    ``derive(0, "train", step)`` gives each training step a stream of its own: resuming at a step needs no stored
    generator state. ``derive(0, "score", subject, slice)`` gives each slice its own: results do not depend on batching.
    """
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big") >> 1
