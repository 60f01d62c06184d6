"""Every rule by which activation ranges follow training keeps its promises."""

from __future__ import annotations

import pytest
import torch

from bitsmith.model.qat.ranges import ActivationRange, RangeStart
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import uint4, uint8
from bitsmith.numbers.moving_average import MovingAverage

NAMES = list(ActivationRange.registry)
STARTS = {
    "relu": RangeStart(Encoding(0.1, 0, uint4), 100, None, True),
    "relu6": RangeStart(Encoding(0.3, 0, uint4), 100, 6.0, True),
    "both sides": RangeStart(Encoding(0.02, 100, uint8), 50),
}


def made(name: str, start: str) -> ActivationRange:
    return ActivationRange.registry[name](STARTS[start])


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NAMES)
def test_it_starts_with_what_calibration_found(name: str, start: str):
    found, known = made(name, start).encoding(), STARTS[start].encoding
    assert found.scale == pytest.approx(known.scale, rel=1e-6)
    assert (found.zero_point, found.format) == (known.zero_point, known.format)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", [-1.0, 1.0])
def test_whatever_the_steps(name: str, start: str, way: float):
    found, given = made(name, start), STARTS[start]
    parameters = [p for p in found.parameters() if p.requires_grad]
    for _ in range(40):
        for p in parameters:
            p.grad = torch.tensor(way)
        if parameters:
            torch.optim.SGD(parameters, lr=0.5).step()
        found.observe(torch.tensor(-2.0 * way), torch.tensor(9.0 + way))
        e = found.encoding()
        assert e.scale == found.scale().item() > 0
        assert e.zero_point == found.zero_point
        assert (found.low, found.high) == (0 - e.zero_point, e.format.code_max - e.zero_point)
        assert not given.from_zero or e.zero_point == 0
        assert given.limit is None or e.scale * found.high <= given.limit


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_all_there_is(name: str):
    found, other = made(name, "both sides"), made(name, "both sides")
    with torch.no_grad():
        for p in found.parameters():
            p.add_(0.1)
    found.observe(torch.tensor(-1.0), torch.tensor(3.0))
    found.set_bits(4)
    other.load_state_dict(found.state_dict())
    assert other.encoding() == found.encoding()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NAMES)
def test_other_bits_keep_the_range(name: str, start: str):
    found = made(name, start)
    before = found.encoding()
    for bits in (8, 3, before.format.bits):
        found.set_bits(bits)
        now = found.encoding()
        assert now.format.bits == bits
        assert now.high - now.low == pytest.approx(before.high - before.low, rel=1e-5)
        assert now.low == pytest.approx(before.low, abs=now.scale)
    assert now.scale == pytest.approx(before.scale, rel=1e-6)
    assert now.zero_point == before.zero_point


def test_a_range_at_its_limit_can_shrink_again():
    found = made("lsq", "relu6")
    with torch.no_grad():
        found.get_parameter("log_scale").fill_(5.0)
    found.scale().backward()  # descending makes it smaller
    assert found.get_parameter("log_scale").grad > 0
    found.zero_grad()
    (-found.scale()).backward()
    assert found.get_parameter("log_scale").grad == 0


def test_the_moving_average_is_the_one_of_numbers():
    found, plain = made("moving_average", "both sides"), MovingAverage(0.99)
    known = STARTS["both sides"].encoding
    plain.update(torch.tensor([known.low, known.high]))
    for low, high in ((-1.0, 2.0), (-3.0, 4.0), (-0.5, 9.0)):
        found.observe(torch.tensor(low), torch.tensor(high))
        plain.update(torch.tensor([low, high]))
    e = found.encoding()
    assert e.high - e.low == pytest.approx(float(plain.high - plain.low), rel=1e-6)
    found.held.fill_(1)
    assert not found.follows


def test_zero_points_that_are_learned_stay_codes():
    found = made("lsq+", "both sides")
    with torch.no_grad():
        found.get_parameter("offset").fill_(0.1)
    assert found.zero_point == round(100 + 0.1 * 255)
    with torch.no_grad():
        found.get_parameter("offset").fill_(7.0)
    assert found.zero_point == 255
    zero = found.zero()
    zero.backward()
    assert found.get_parameter("offset").grad > 0  # leads back
    assert made("lsq+", "relu").zero() is None
