"""Where published weights are looked for, and how they are fetched (from a local source)."""

import hashlib
import http.server
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bitsmith.errors import WeightsError
from bitsmith.zoo import load_model, load_weights, zoo_models
from bitsmith.zoo.models.cifar_resnet import CifarResNet20
from bitsmith.zoo.published import cache_folder, fetch, find_weights

FILE = "cifar10-resnet20.safetensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BITSMITH_DATA", raising=False)
    folder = tmp_path / "cache" / "bitsmith"
    folder.mkdir(parents=True)
    assert cache_folder() == folder
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint as the public source has it: DataParallel names under ``state_dict``."""
    state = CifarResNet20.build().state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": wrapped, "best_prec1": 91.7}, tmp_path / "raw.th")
    digest = hashlib.sha256((tmp_path / "raw.th").read_bytes()).hexdigest()
    return shutil.move(tmp_path / "raw.th", tmp_path / f"resnet20-{digest[:8]}.th")


def published_state(source: Path) -> dict[str, torch.Tensor]:
    state = torch.load(source, weights_only=True)["state_dict"]
    return {name.removeprefix("module."): value for name, value in state.items()}


def test_fetch_converts_into_the_cache(cache: Path, source: Path) -> None:
    path = fetch(source.as_uri(), cache / "new" / FILE)
    module = CifarResNet20.build()
    load_weights(module, path)
    for name, value in published_state(source).items():
        assert torch.equal(module.state_dict()[name], value), name
    assert [p.name for p in path.parent.iterdir()] == [FILE]


def test_a_model_downloads_once(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CifarResNet20, "weights_url", source.as_uri())
    first = load_model("cifar-resnet20")
    source.unlink()
    again = load_model("cifar-resnet20")
    assert first.weights_sha256 == again.weights_sha256
    assert first.weights_sha256 == hashlib.sha256((cache / FILE).read_bytes()).hexdigest()
    assert not first.module.training


def test_the_data_folder_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for place in (folder, cache):
        save_file(CifarResNet20.build().state_dict(), place / FILE)
    assert find_weights(CifarResNet20) == cache / FILE
    monkeypatch.setenv("BITSMITH_DATA", str(folder))
    assert find_weights(CifarResNet20) == folder / FILE
    monkeypatch.setenv("BITSMITH_DATA", str(tmp_path / "absent"))
    with pytest.raises(WeightsError, match="is not a folder"):
        find_weights(CifarResNet20)


def test_checksum_that_does_not_match(cache: Path, source: Path) -> None:
    source.write_bytes(source.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="damaged or was changed"):
        fetch(source.as_uri(), cache / FILE)
    assert not list(cache.iterdir())


def test_unreachable_source(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot download .*BITSMITH_DATA .*--weights"):
        fetch((tmp_path / "absent-00000000.th").as_uri(), cache / FILE)


def test_a_source_without_checksum_is_refused(cache: Path) -> None:
    with pytest.raises(WeightsError, match="8 hex digits"):
        fetch("https://example.invalid/resnet20.th", cache / FILE)


def test_destination_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot write"):
        fetch(source.as_uri(), tmp_path / "file" / FILE)


def test_a_model_without_weights(cache: Path) -> None:
    with pytest.raises(WeightsError, match="--weights"):
        load_model("mlp")
    assert load_model("mlp", pretrained=False).weights_sha256 is None


def test_every_source_names_its_checksum() -> None:
    urls = [e.weights_url for e in map(zoo_models.__getitem__, zoo_models) if e.weights_url]
    assert len(urls) == 5
    assert all(url.startswith("https://github.com/akamaster/pytorch_resnet") for url in urls)


class _Short(http.server.BaseHTTPRequestHandler):
    """Promises more bytes than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"too few")

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def test_a_connection_cut_short_is_an_error(cache: Path) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Short)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/resnet20-12fca82f.th"
    with pytest.raises(WeightsError, match="damaged or was changed"):
        fetch(url, cache / FILE)
    thread.join()
    server.server_close()
    assert not list(cache.iterdir())
