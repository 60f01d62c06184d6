"""Which parameters go together in a file: as many as its largest size allows."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["shard_names"]


def shard_names(sizes: Sequence[int], limit: int) -> list[str]:
    """Return the file of each parameter: as many in a file, in order, as ``limit`` bytes allow.

    >>> shard_names([4, 4, 4], 8)[1:]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    >>> shard_names([4, 4, 4], 12)
    ['model.safetensors', 'model.safetensors', 'model.safetensors']
    """
    shard, filled, places = 1, 0, []
    for size in sizes:
        if filled and filled + size > limit:
            shard, filled = shard + 1, 0
        filled += size
        places.append(shard)
    if shard == 1:
        return ["model.safetensors"] * len(places)
    return [f"model-{place:05}-of-{shard:05}.safetensors" for place in places]
