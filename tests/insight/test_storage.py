"""What a weight takes, against tensors that were really quantized."""

import pytest
import torch

from bitsmith.errors import SchemeError
from bitsmith.insight.storage import STORAGES, model_sizes, stored_bytes
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.integer import int4
from bitsmith.numbers.granularity import PerGroup
from bitsmith.numbers.named_schemes import NAMED_SCHEMES
from bitsmith.numbers.scheme import Scheme

SHAPES = [(6, 128), (3, 64, 3, 3), (5, 192, 2)]


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_those_of_a_quantized_tensor(storage, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert stored_bytes(shape, storage.scheme) == quantize(x, storage.scheme).nbytes


@pytest.mark.parametrize("name", sorted(NAMED_SCHEMES))
def test_bytes_of_named_schemes(name):
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    q = quantize(x, NAMED_SCHEMES[name])
    assert stored_bytes((4, 256), NAMED_SCHEMES[name]) == q.nbytes


def test_a_huge_weight_takes_no_memory_to_measure():
    scheme = Scheme(int4, granularity=PerGroup(64))
    assert stored_bytes((1024, 1 << 16), scheme) == (1 << 25) + 4 * (1 << 20)


def test_groups_that_do_not_divide():
    with pytest.raises(SchemeError, match="must divide"):
        stored_bytes((4, 63), Scheme(int4, granularity=PerGroup(64)))
    grouped = [s for s in STORAGES if "group" in s.name]
    assert grouped
    for storage in grouped:
        assert storage.fits((4, 64))
        assert not storage.fits((4, 63))
        assert storage.for_shape((4, 63)).scale_format is None
        assert storage.for_shape((4, 64)) == storage.scheme


def test_names_are_distinct_and_tell_the_order():
    names = [s.name for s in STORAGES]
    assert len(set(names)) == len(names)
    bits = [s.bits for s in STORAGES]
    assert bits == sorted(bits, reverse=True)


def test_a_model_without_weights_and_without_parameters():
    sizes = {s.storage.name: s for s in model_sizes([torch.zeros(3)])}
    assert sizes["int4"].bytes == 12
    assert sizes["float16"].bytes == 6
    assert sizes["int4"].bits_per_weight == 0
    assert {s.bytes for s in model_sizes([])} == {0}
