"""ACIQ: the paper's constants, the optimum by brute force, and what is done at one side of 0."""

from __future__ import annotations

import math

import pytest
import scipy.integrate
import torch

from bitsmith.errors import SchemeError
from bitsmith.numbers.affine import fake_quantize
from bitsmith.numbers.calibrators import calibrators
from bitsmith.numbers.calibrators.aciq import Gaussian, Laplace, gaussian_alpha, laplace_alpha
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.integer import int4, integer_format, uint4
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Histogram

G = torch.Generator().manual_seed(0)
NORMAL = torch.randn(200_000, generator=G)
LAPLACE = torch.distributions.Laplace(0.0, 1.0).icdf(
    torch.rand(200_000, generator=G).clamp(1e-6, 1 - 1e-6)
)
SEEN = {Gaussian: NORMAL, Laplace: LAPLACE}


def histogram(x: torch.Tensor) -> Histogram:
    h = Histogram()
    h.update(x)
    return h


# With the digits of the authors' program, and as printed in the paper (two decimals, cut off).
PUBLISHED = {
    gaussian_alpha: [
        *(1.71063519, 2.15159277, 2.55913646, 2.93620062),
        *(3.28691474, 3.6151146, 3.92403714),
    ],
    laplace_alpha: [
        *(2.83068299, 3.89722946, 5.02864014, 6.20476633),
        *(7.41312622, 8.64561995, 9.89675982),
    ],
}
PRINTED = {
    gaussian_alpha: [1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92],
    laplace_alpha: [2.83, 3.89, 5.03, 6.20, 7.41, 8.64, 9.89],
}
ONE_SIDED = {  # fused ReLU, 2 to 8 bits
    gaussian_alpha: [2.15, 2.55, 2.93, 3.28, 3.61, 3.92, 4.2],
    laplace_alpha: [3.89, 5.03, 6.20, 7.41, 8.64, 9.89, 11.16],
}


@pytest.mark.parametrize("alpha", [gaussian_alpha, laplace_alpha])
def test_the_published_constants(alpha) -> None:
    found = [alpha(2**bits) for bits in range(2, 9)]
    assert found == pytest.approx(PUBLISHED[alpha], abs=2e-6)
    assert found == pytest.approx(PRINTED[alpha], abs=0.01)
    assert [alpha(2 * 2**bits) for bits in range(2, 9)] == pytest.approx(ONE_SIDED[alpha], abs=0.02)


@pytest.mark.parametrize("levels", [2, 3, 15, 255, 65536])
def test_no_other_bound_has_a_smaller_error_in_the_papers_model(levels: int) -> None:
    densities = {
        gaussian_alpha: lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
        laplace_alpha: lambda x: math.exp(-x) / 2,
    }
    for alpha, density in densities.items():

        def error(a: float, density=density) -> float:
            clip, _ = scipy.integrate.quad(
                lambda x: (x - a) ** 2 * density(x), a, a + 60, epsabs=0, epsrel=1e-11, limit=200
            )
            return 2 * clip + a * a / (3 * levels**2)

        best = alpha(levels)
        assert all(error(best) < error(best * (1 + e)) for e in (-0.3, -0.01, 0.01, 0.3))


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_the_range_is_near_the_best_on_data_of_its_distribution(kind, bits: int) -> None:
    signed, unsigned = integer_format(bits, True), integer_format(bits, False)
    for x, scheme in (
        (SEEN[kind], Scheme(signed)),
        (SEEN[kind] + 1.5, Scheme(unsigned, False)),
        (SEEN[kind].relu(), Scheme(unsigned, False)),
        (-SEEN[kind].abs(), Scheme(unsigned, False)),
        (SEEN[kind].relu(), Scheme(signed)),
    ):
        h = histogram(x)

        def error(name: str, h=h, x=x, scheme=scheme) -> float:
            scale, zero_point = calibrators[name]()(h, scheme)
            return float((fake_quantize(x, scheme, scale, zero_point) - x).square().mean())

        assert error(kind.name) <= 1.25 * error("mse")
        assert error(kind.name) < error("percentile")


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
def test_where_the_range_lies(kind) -> None:
    x, a = SEEN[kind], {Gaussian: gaussian_alpha, Laplace: laplace_alpha}[kind]
    signed, unsigned = Scheme(int4), Scheme(uint4, symmetric=False)

    def limits(x: torch.Tensor, scheme: Scheme) -> tuple[float, float]:
        low, high = kind().limits(histogram(x), scheme)
        return float(low), float(high)

    assert limits(x, signed) == pytest.approx((-a(16), a(16)), rel=0.02)
    assert limits(x + 1.5, unsigned) == pytest.approx((1.5 - a(16), 1.5 + a(16)), rel=0.02)
    # Zeros of a ReLU, however many, do not make the half that is left narrower.
    for one_sided in (x.abs(), x.relu(), torch.cat([x.relu(), torch.zeros(500_000)])):
        assert limits(one_sided, unsigned) == pytest.approx((0, a(32)), rel=0.03, abs=1e-3)
        assert limits(-one_sided, unsigned) == pytest.approx((-a(32), 0), rel=0.03, abs=1e-3)
        assert limits(one_sided, signed) == pytest.approx((-a(16), a(16)), rel=0.03)


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
@pytest.mark.parametrize(
    "x",
    [NORMAL[:9], NORMAL[:50] + 40, torch.rand(99), torch.tensor([-1.0, 1.0]), torch.zeros(3),
     torch.full((4,), -7.5), torch.tensor([0.0, 1e-42]), torch.tensor([-3e38, 3e38])],
)  # fmt: skip
def test_the_range_is_never_wider_than_the_extremes(kind, x: torch.Tensor) -> None:
    for bits in (1, 2, 8):
        low, high = kind().limits(histogram(x), Scheme(integer_format(bits, False), False))
        assert float(x.min().clamp(max=0)) <= float(low) <= float(high)
        assert float(high) <= float(x.max().clamp(min=0))
        bound = kind().limits(histogram(x), Scheme(integer_format(8, True)))[1]
        assert 0 <= float(bound) <= float(x.abs().max())


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
def test_codes_that_are_not_evenly_spaced_are_refused(kind) -> None:
    with pytest.raises(SchemeError, match=r"evenly spaced .* use mse"):
        kind().limits(histogram(NORMAL), Scheme(formats["nf4"]))
