"""Networks of the zoo with their data: trained where unpublished, refused where they do not fit."""

import pytest
import torch

from bitsmith.errors import DataError, InputError, UnknownNameError
from bitsmith.insight.zoo_network import ELSE, published_network, zoo_network
from bitsmith.model.graph.operators import run_float
from bitsmith.model.trained import _silent


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitsmith.model.trained.cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="module")
def network():
    return zoo_network(ELSE, None, quick=True)


def test_an_unpublished_network_is_trained_once(network):
    again = zoo_network(ELSE, None, quick=True)
    state, same = network.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(state[n], same[n]) for n in state)
    assert again.weights == network.weights
    found = network.judge("float", "float", network.module, 200)
    assert found.n == 200
    assert found.accuracy > 50


def test_graph_and_samples_are_those_of_the_network(network):
    x = next(iter(network.calibration(10**9, 3)))[0]
    whole = run_float(network.graph(), [x])[0]
    assert torch.allclose(whole, network.module(x), atol=1e-4)
    assert sum(len(x) for x, _ in network.calibration(100, 3)) == 100
    told = []
    network.judge("float", "float", network.module, advance=told.append)
    assert sum(told) == network.test.n


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"samples of shape \(1, 8, 8\), and 'moons' has samples"):
        zoo_network(ELSE, "moons")
    with pytest.raises(InputError, match="reads text"):
        zoo_network("stories260k", None)
    with pytest.raises(UnknownNameError, match="did you mean 'digits-cnn'"):
        zoo_network("digit-cnn", None)


def test_another_network_steps_in_only_where_none_was_asked_for(monkeypatch):
    def absent(name):
        if name != "digits":
            raise DataError(f"no {name} here")
        from bitsmith.data.load import load_dataset

        return load_dataset(name)

    monkeypatch.setattr("bitsmith.insight.zoo_network.load_dataset", absent)
    how = {"quick": True, "seed": 0, "stage": _silent}
    found, skipped = published_network("cifar-resnet20", "cifar10", "cifar10", **how)
    assert found.name == ELSE
    assert skipped == ["cifar-resnet20: no cifar10 here; everything here is of digits-cnn"]
    with pytest.raises(DataError, match="no mine here"):
        published_network("cifar-resnet20", "mine", "cifar10", **how)
