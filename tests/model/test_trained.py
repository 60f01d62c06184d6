"""Networks that are trained once: what is kept, what is refused, and when training ends."""

import json
import logging
import struct

import numpy as np
import pytest
import torch
from torch import nn

from bitsmith.data import Split, load_dataset
from bitsmith.errors import DataError
from bitsmith.model import trained
from bitsmith.model.evaluate import accuracy
from bitsmith.model.trained import Training, trained_network, trained_once

QUICK = Training(epochs=3, lr=0.1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "cache_folder", lambda: tmp_path)
    return tmp_path / "trained"


@pytest.fixture
def split():
    return load_dataset("moons").split("train")


def build():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture
def trainings(monkeypatch):
    """Count how often something is trained."""
    counted = []
    fit = trained.fit
    monkeypatch.setattr(trained, "fit", lambda *a, **k: (counted.append(1), fit(*a, **k))[1])
    return counted


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_it_learns_and_the_second_time_is_read(split, cache, trainings):
    net = trained_network("net", build, split, Training(epochs=20, lr=0.1))
    assert not net.training
    assert accuracy(net, load_dataset("moons").split("test").batches(300)) > 85
    again = trained_network("net", build, split, Training(epochs=20, lr=0.1))
    assert same(net, again)
    assert len(trainings) == 1
    (file,) = cache.iterdir()
    assert file.name.startswith("net-")


def test_the_same_seed_gives_the_same_weights_without_a_cache(split, cache):
    one = trained_network("net", build, split, QUICK)
    next(cache.iterdir()).unlink()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(one, trained_network("net", build, split, QUICK))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state changed"


@pytest.mark.parametrize(
    "other",
    [Training(epochs=2, lr=0.1), Training(epochs=3, lr=0.2), Training(epochs=3, lr=0.1, seed=1)],
)
def test_every_setting_has_a_file_of_its_own(split, cache, trainings, other):
    trained_network("net", build, split, QUICK)
    trained_network("net", build, split, other)
    assert len(trainings) == len(list(cache.iterdir())) == 2


def test_other_samples_and_other_structures_too(split, trainings):
    trained_network("net", build, split, QUICK)
    fewer = Split("moons", "train", split.x[:-1], split.y[:-1], classes=2)
    trained_network("net", build, fewer, QUICK)
    trained_network(
        "net", lambda: nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 2)), split, QUICK
    )
    assert len(trainings) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "nan", "shape"])
def test_a_damaged_file_is_made_anew_and_the_log_says_so(split, cache, trainings, caplog, damage):
    net = trained_network("net", build, split, QUICK)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    state = {n: t.detach().clone() for n, t in net.state_dict().items()}
    if damage == "nan":
        state["0.weight"][0, 0] = torch.nan
    if damage == "shape":
        state["0.weight"] = torch.zeros(3)
    other = trained.save(state, {"bitsmith": trained.__version__})
    broken = {"cut": whole[:-9], "empty": b"", "noise": bytes(range(256))}
    file.write_bytes(broken.get(damage, other))
    with caplog.at_level(logging.WARNING):
        assert same(net, trained_network("net", build, split, QUICK))
    assert "made anew" in caplog.text
    assert len(trainings) == 2
    assert file.read_bytes() == whole


def test_a_file_of_another_version_is_made_anew(split, cache, trainings, caplog):
    trained_network("net", build, split, QUICK)
    (file,) = cache.iterdir()
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["bitsmith"] = "0.0.1"
    changed = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])
    with caplog.at_level(logging.WARNING):
        trained_network("net", build, split, QUICK)
    assert "written by bitsmith 0.0.1" in caplog.text
    assert len(trainings) == 2
    assert file.read_bytes() == data


def test_a_cache_that_cannot_be_written_costs_time_only(split, cache, caplog):
    cache.write_text("a file in the place of the folder")
    with caplog.at_level(logging.WARNING):
        trained_network("net", build, split, QUICK)
    assert "not kept" in caplog.text


def test_interrupted_leaves_nothing(split, cache, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trained, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained_network("net", build, split, QUICK)
    assert not cache.exists()


def test_killed_while_writing_leaves_no_file_of_that_name(split, cache, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trained.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        trained_network("net", build, split, QUICK)
    assert list(cache.iterdir()) == []


def test_training_stops_early_and_keeps_the_best_epoch(split, monkeypatch):
    """Held-out accuracies as given: the second epoch is the best, two more are waited for."""
    given, states = iter([80.0, 90.0, 85.0, 90.0, 99.0]), []

    def judged(module, batches):
        states.append({n: t.clone() for n, t in module.state_dict().items()})
        return next(given)

    monkeypatch.setattr(trained, "accuracy", judged)
    net = trained_network("net", build, split, Training(epochs=50, patience=2, lr=0.1))
    assert len(states) == 4
    assert all(torch.equal(t, states[1][n]) for n, t in net.state_dict().items())


def test_without_samples_held_out_the_last_epoch_is_kept(split, monkeypatch):
    monkeypatch.setattr(trained, "accuracy", lambda *a: pytest.fail("nothing is held out"))
    trained_network("net", build, split, Training(epochs=2, held_out=0.0, limit=64))


def test_what_is_held_out_is_not_learned_from(split):
    learned, held = trained._parts(split, Training(epochs=1, limit=500))
    assert (learned.n, held.n) == (450, 50)
    rows = {row.tobytes() for row in learned.x}
    assert not rows & {row.tobytes() for row in held.x}


def test_progress_is_shown_once_a_step(split):
    told, counts = [], []

    class Shown:
        def __init__(self, what, total):
            told.append((what, total))

        def __enter__(self):
            return counts.append

        def __exit__(self, *error):
            return None

    trained_network("net", build, split, QUICK, stage=Shown)
    assert told == [("training net", 3 * 5)]  # 630 of 700 samples, 128 at a time
    assert counts == [1] * 15


def test_bad_samples(split):
    with pytest.raises(DataError, match="train split only"):
        trained_network("net", build, load_dataset("moons").split("test"), QUICK)
    with pytest.raises(DataError, match="needs labels"):
        trained_network("net", build, Split("mine", "train", split.x, None), QUICK)
    with pytest.raises(DataError, match="has 700 training samples; 701"):
        trained_network("net", build, split, Training(epochs=1, limit=701))


def test_anything_can_be_trained_once(cache):
    calls = []

    def step(module):
        calls.append(1)
        nn.init.constant_(module.weight, 2.0)

    for decides in ({"lr": 1}, {"lr": 1}, {"lr": 2}):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Linear(2, 1)
        found = trained_once("any", net, decides, lambda net=net: step(net))
        assert np.array_equal(found.weight.detach().numpy(), [[2.0, 2.0]])
    assert len(calls) == 2


def test_the_cache_is_the_user_s(monkeypatch, tmp_path):
    from bitsmith.data.fetch import cache_folder

    monkeypatch.setattr(trained, "cache_folder", cache_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    trained_once("net", nn.Linear(1, 1), {}, lambda: None)
    assert len(list((tmp_path / "mine" / "bitsmith" / "trained").iterdir())) == 1
