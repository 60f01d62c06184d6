"""Every rule by which weights become codes while they train keeps its promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitsmith.algorithms.roundings.nearest import Nearest
from bitsmith.algorithms.roundings.shared_table import SharedTable
from bitsmith.errors import RecipeError, UnknownNameError
from bitsmith.model.convert import IntegerLayer, layer_of
from bitsmith.model.graph.ir import Node
from bitsmith.model.qat.codes import Start, WeightCodes, choose
from bitsmith.model.recipe import weight_scheme
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import int1, ternary, uint8
from bitsmith.numbers.scheme import PerChannel, Scheme

NODE, X = Node("layer", "conv", ("x",)), Encoding(0.1, 0, uint8)
WEIGHT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(
    -2, 1, 6
).reshape(6, 1, 1, 1)


def layer(kind: str, weight: Tensor = WEIGHT) -> IntegerLayer:
    schemes = {
        "int1": Scheme(int1, granularity=PerChannel(0)),
        "ternary": Scheme(ternary, granularity=PerChannel(0)),
    }
    if kind.startswith("table"):
        q = SharedTable(int(kind[5:]), 64)(weight, weight_scheme(8)).qtensor
        return layer_of(NODE, q, None, X, 0.0, 0.0, table_bits=int(kind[5:]))
    scheme = schemes[kind] if kind in schemes else weight_scheme(int(kind[3:]))
    return layer_of(NODE, Nearest()(weight, scheme).qtensor, None, X, 0.0, 0.0)


KINDS = ("int1", "ternary", "int2", "int3", "int4", "int8", "table1", "table2", "table4")
RULES = [
    (name, kind)
    for name in WeightCodes.registry
    for kind in KINDS
    if WeightCodes.registry[name].fits(layer(kind))
]


def rule_of(name: str, kind: str, weight: Tensor = WEIGHT) -> WeightCodes:
    return choose(name, Start(weight, layer(kind, weight), 64))


@pytest.mark.parametrize(("name", "kind"), RULES)
def test_training_and_deployment_have_the_same_codes(name: str, kind: str):
    rule = rule_of(name, kind)
    parameters = list(rule.parameters())
    descent = torch.optim.Adam(parameters, lr=0.05) if parameters else None
    goal = WEIGHT.flip(0)
    for _ in range(4):
        codes, scale = rule()
        frozen = rule.frozen()
        assert torch.equal(codes, codes.round())
        assert torch.equal(frozen.codes.float(), codes)
        assert torch.equal(frozen.scale.reshape(-1), scale)
        assert bool((scale > 0).all())
        if kind.startswith("table") and name != "frozen":
            assert codes.unique().numel() <= 1 << int(kind[5:])
        if kind == "int8" or kind.startswith("table"):
            assert codes.abs().max() <= 64 or name == "frozen"
        if kind == "int1":
            assert set(codes.unique().tolist()) <= {-1.0, 1.0}
        if descent is not None:
            descent.zero_grad()
            (codes * scale.reshape(-1, 1, 1, 1) - goal).square().mean().backward()
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters)
            assert bool((rule.get_parameter("weight").grad != 0).any())
            descent.step()
    assert descent is None or not torch.equal(
        rule.frozen().codes, rule_of(name, kind).frozen().codes
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [r for r in RULES if r[0] in ("learned-step", "table", "frozen") and r[1] != "int8"],
)
def test_training_starts_with_the_codes_that_rounding_chose(name: str, kind: str):
    """Also with codes that are not the nearest (here every fifth is any); small steps keep them."""
    made = layer(kind)
    codes, levels = made.weight.codes.clone().flatten(), made.weight.codes.unique()
    codes[::5] = levels[torch.arange(len(codes[::5])) % len(levels)]
    q = replace(made.weight, codes=codes.reshape(WEIGHT.shape))
    other = q.codes != made.weight.codes
    assert int(other.sum()) > 10
    step = 0.3 * float(levels.diff().min()) / 2  # in codes: a third of the narrowest half cell
    for way in (step, -step):
        rule = choose(name, Start(WEIGHT, replace(made, weight=q), 64))
        assert torch.equal(rule.frozen().codes, q.codes)
        scale = rule.frozen().scale.reshape(-1, 1, 1, 1)
        with torch.no_grad():
            for p in rule.parameters():
                if p.shape == WEIGHT.shape:
                    p.add_(way * scale)
        after = rule.frozen().codes
        assert torch.equal(after[other], q.codes[other])
        # learned steps bring every weight near its code, tables only those of another entry
        assert torch.equal(after, q.codes) == (name != "table")


@pytest.mark.parametrize(("name", "kind"), RULES)
def test_the_state_is_all_there_is(name: str, kind: str):
    rule, other = rule_of(name, kind), rule_of(name, kind, WEIGHT.flip(0))
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(0.01)
    other.load_state_dict(rule.state_dict())
    for ours, theirs in zip(rule(), other(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("name", "kind"), RULES)
def test_channels_of_zeros(name: str, kind: str):
    weight = WEIGHT.clone()
    weight[2] = 0
    rule = rule_of(name, kind, weight)
    codes, scale = rule()
    assert bool(codes.isfinite().all())
    assert bool((scale > 0).all())
    if list(rule.parameters()):
        (codes * scale.reshape(-1, 1, 1, 1)).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in rule.parameters())
    assert rule.collapsed() in (0, 1)


@pytest.mark.parametrize(("name", "kind"), RULES)
def test_a_share_of_the_codes_is_rounded(name: str, kind: str):
    rule = rule_of(name, kind)
    rule.share.fill_(0.5)
    rule.block.fill_(4)
    torch.manual_seed(0)
    (codes, scale), whole = rule(), rule.frozen().codes.float()
    if name == "frozen":
        assert torch.equal(codes, whole)
        return
    rounded = (codes == whole).flatten(1)
    assert 0.2 < rounded.float().mean() < 0.8
    values = (rule.own / scale.reshape(-1, 1, 1, 1)).flatten(1)
    assert torch.allclose(codes.flatten(1)[~rounded], values[~rounded])
    blocks = (codes != whole).flatten(1).reshape(6, 9, 4)
    assert bool((blocks.any(2) == blocks.all(2)).float().mean() > 0.9)
    rule.eval()
    assert torch.equal(rule()[0], whole)


def test_an_entry_gets_the_sum_of_its_members():
    rule = rule_of("lsq", "table2")
    codes, _ = rule()
    gradient = torch.randn(codes.shape, generator=torch.Generator().manual_seed(1))
    codes.backward(gradient)
    expected = [float(gradient[codes == value].sum()) * 64 for value in codes.unique()]
    assert rule.get_parameter("entries").grad.tolist() == pytest.approx(expected, rel=1e-4)


def test_entries_may_cross_and_meet():
    rule = rule_of("lsq", "table2")
    with torch.no_grad():
        entries = rule.get_parameter("entries")
        entries.copy_(entries.flip(0))
    flipped = rule()[0].detach()
    codes, _ = rule_of("lsq", "table2")()
    assert torch.equal(flipped, codes)
    with torch.no_grad():
        entries[1] = entries[0]
    assert rule()[0].unique().numel() == 3
    rule()[0].sum().backward()
    assert bool(entries.grad.isfinite().all())


def test_starts():
    """XNOR: mean |w|. TWN: the mean of the magnitudes above 0.7 · mean |w|."""
    size = WEIGHT.flatten(1).abs()
    assert torch.allclose(rule_of("lsq", "int1")()[1], size.mean(1))
    threshold = 0.7 * size.mean(1, keepdim=True)
    kept = torch.stack([r[r > t].mean() for r, t in zip(size, threshold, strict=True)])
    for learn in ("lsq", "minmax"):
        codes, scale = rule_of(learn, "ternary")()
        assert torch.allclose(scale, kept)
        assert torch.equal(codes.flatten(1) != 0, size > threshold)


def test_learned_steps_start_at_the_codes_that_were_found():
    rounded = layer("int3")
    moved = (rounded.weight.codes + 1).clamp(-4, 3).to(torch.int8)
    changed = type(rounded.weight)(
        moved, rounded.weight.scale, rounded.weight.zero_point, None, rounded.weight.scheme
    )
    start = Start(WEIGHT, layer_of(NODE, changed, None, X, 0.0, 0.0))
    assert torch.equal(choose("lsq", start).frozen().codes, moved)


def test_other_bits_for_a_while():
    rule = rule_of("lsq", "int2")
    errors = []
    for bits in (2, 4, 8):
        rule.set_bits(bits, WEIGHT)
        q = rule.frozen()
        assert q.scheme.format.bits == bits
        errors.append(float((q.dequantize() - WEIGHT).square().mean()))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    other = rule_of("lsq", "int2")
    other.load_state_dict(rule.state_dict())
    assert other.frozen().scheme == rule.frozen().scheme


def test_bad_requests():
    with pytest.raises(UnknownNameError):
        choose("lsk", Start(WEIGHT, layer("int4")))
    with pytest.raises(RecipeError, match="cannot train codes"):
        choose("binary", Start(WEIGHT, layer("int4")))
