"""Reading memory: several methods, the best of them."""

import pytest
import torch

from bitsmith.errors import InputError
from bitsmith.insight.bench.bandwidth import read_bandwidth


def test_the_best_method_is_the_limit():
    before = torch.get_num_threads()
    found = read_bandwidth(2, size=1 << 22, seconds=0.03)
    assert {"torch.sum", "torch.mv"} <= set(found.others)
    assert found.bytes_per_second == max(found.others.values()) == found.others[found.method]
    assert 1e7 < found.bytes_per_second < 1e13
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("threads", "size"), [(0, None), (1, 100)])
def test_refuses(threads, size):
    with pytest.raises(InputError, match="bandwidth"):
        read_bandwidth(threads, size=size)
