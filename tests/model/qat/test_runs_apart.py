"""A checkpoint is of one network, recipe, runtime and way of training; all that is said resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitsmith.errors import InputError
from bitsmith.model.presets import make_recipe
from bitsmith.model.qat import (
    convert,
    fit,
    freeze_batch_norms,
    freeze_scales,
    prepare,
    quant_noise,
    set_bits,
)
from bitsmith.model.recipe import Recipe

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).eval()


def images() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)
    ).eval()


@pytest.mark.parametrize("recipe", ["W3A4", "W3"])
def test_another_network_of_the_same_shapes_is_refused(recipe: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        float_net = net(seed)
        model, path = prepare(float_net, recipe, X), tmp_path / "run.pt"
        if seed == 0:
            fit(model, X.split(32), epochs=1, teacher=float_net, checkpoint=path, progress=False)
            continue
        with pytest.raises(InputError, match="float weights sha256"):
            fit(model, X.split(32), epochs=1, teacher=float_net, checkpoint=path, progress=False)


def renamed() -> Recipe:
    other = make_recipe("W4A8").to_json()
    return Recipe.from_json(other | {"name": "W8A8"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": "vnni"}, "machine: 'any' there, 'vnni' now"),
        ({"calibrator": "minmax"}, "calibrator"),
        ({"ranges": "pact"}, "ranges: .*lsq.* there, .*pact.* now"),
        ({"recipe": renamed()}, "recipe sha256"),
    ],
    ids=["machine", "calibrator", "ranges", "a recipe of the same name"],
)
def test_another_way_to_the_same_shapes_is_refused(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    path, settings = tmp_path / "run.pt", {"recipe": "W8A8", "calibrator": "mse"}
    fit(prepare(net(), data=X, **settings), X.split(32), epochs=1, checkpoint=path, progress=False)  # type: ignore[arg-type]  # keywords by name
    other = prepare(net(), data=X, **(settings | change))  # type: ignore[arg-type]  # keywords by name
    with pytest.raises(InputError, match=said):
        fit(other, X.split(32), epochs=1, checkpoint=path, progress=False)


def test_no_trace_of_it_is_deployed() -> None:
    assert "source_identity" not in vars(convert(prepare(net(), "W3")))


@pytest.mark.parametrize(
    "change",
    [freeze_batch_norms, freeze_scales, lambda m: quant_noise(m, 0.5, 2), lambda m: set_bits(m, 5)],
    ids=["batch norms", "scales", "quant noise", "bits"],
)
@pytest.mark.parametrize("recipe", ["W3A3", "W3"])
def test_what_one_epoch_changed_is_changed_after_a_stop(
    change: Callable[[nn.Module], object], recipe: str, tmp_path: Path
) -> None:
    x = torch.randn(32, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    def at(epoch: int, model: nn.Module) -> None:
        if epoch == 1:
            change(model)
        if epoch == stop:
            raise KeyboardInterrupt

    found: list[dict[str, Tensor]] = []
    for stop in (9, 2, 9):
        float_net = images()
        model = prepare(float_net, recipe, x, batch_norm="train" if recipe == "W3A3" else "fold")
        path = None if not found and stop == 9 else tmp_path / "run.pt"
        try:
            fit(
                model, x.split(8), epochs=4, teacher=float_net, checkpoint=path, on_epoch=at,
                progress=False,
            )  # fmt: skip
        except KeyboardInterrupt:
            continue
        found.append(model.state_dict())
    assert len(found) == 2
    for name, value in found[0].items():
        if isinstance(value, Tensor):
            assert torch.equal(value, found[1][name]), name
