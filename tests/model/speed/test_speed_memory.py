"""The last-level cache as the system tells of it, and copies beyond it."""

import pytest

from bitsmith.model.speed import memory
from bitsmith.model.speed.memory import copies, last_level_cache


def test_the_largest_cache_of_a_listing(tmp_path):
    for index, text in enumerate(["48K\n", "2048K", "480M", "odd", ""]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(text)
    assert memory._of_sysfs(tmp_path) == 480 << 20
    assert memory._of_sysfs(tmp_path / "absent") == 0
    assert last_level_cache() >= 1 << 16


@pytest.mark.parametrize(
    ("nbytes", "working_set", "free", "count"),
    [
        (1 << 20, float("inf"), float("inf"), 40),  # 1.25 times 32 MiB
        (1 << 20, 10 << 20, float("inf"), 10),  # a small model lies in the cache
        (1 << 20, float("inf"), 3 << 20, 3),  # as many as there is memory for
        (1 << 10, float("inf"), float("inf"), 1024),
        (1 << 30, float("inf"), 1 << 20, 1),
        (0, float("inf"), float("inf"), 1),
    ],
)
def test_copies(monkeypatch, nbytes, working_set, free, count):
    monkeypatch.setattr(memory, "last_level_cache", lambda: 32 << 20)
    assert copies(nbytes, working_set, free) == count
