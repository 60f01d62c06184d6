"""Archives and downloads, with small archives of the real formats and a server on this machine."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.data import datasets, load_dataset
from bitsmith.data.archives import IDX_FILES, cifar10_arrays, read_idx
from bitsmith.data.fetch import Source
from bitsmith.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def mnist_archives(folder: Path) -> None:
    for key, file in IDX_FILES.items():
        array = IMAGES if key[0] == "x" else LABELS
        (folder / file).write_bytes(idx(array[:5] if "test" in key else array))


def cifar_records(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, n, dtype=np.uint8)
    content = b"".join(
        bytes([y]) + b"".join(x[:, :, c].tobytes() for c in range(3))
        for x, y in zip(images, labels, strict=True)
    )
    return images, labels, content


def tarball(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


BATCHES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def cifar_archive(folder: Path) -> Path:
    members = {name: cifar_records(4, i)[2] for i, name in enumerate(BATCHES)}
    return tarball(folder / "cifar-10-binary.tar.gz", members | {"readme.html": b"hello"})


def test_idx_round_trip(tmp_path: Path) -> None:
    for array in (IMAGES, LABELS):
        (tmp_path / "a.gz").write_bytes(idx(array))
        np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), array)


WHOLE = gzip.decompress(idx(IMAGES))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(IMAGES)[:-200], "damaged or truncated"),
        (b"not gzip at all", "damaged or truncated"),
        (b"", "not an IDX file"),
        (gzip.compress(WHOLE[:-1], mtime=0), "only 15679"),
        (gzip.compress(WHOLE + b"x", mtime=0), "has more"),
        (gzip.compress(WHOLE[:10], mtime=0), "damaged or truncated"),
        (gzip.compress(b"\0\0\x0d\x03" + WHOLE[4:], mtime=0), "not an IDX file of uint8"),
        (gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12, mtime=0), "cannot be right"),
        (gzip.compress(b"\0\0\x08\x01" + b"\0" * 4, mtime=0), "cannot be right"),
    ],
)
def test_idx_that_is_damaged_or_hostile(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "a.gz")


def test_idx_bomb_is_not_unpacked(tmp_path: Path) -> None:
    header = struct.pack(">2I", 0x801, 10)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(header + bytes(2**24), mtime=0))
    with pytest.raises(DataError, match="has more"):
        read_idx(tmp_path / "bomb.gz")


def test_cifar_planes_become_pixels(tmp_path: Path) -> None:
    arrays = cifar10_arrays(cifar_archive(tmp_path))
    for split, seeds in (("train", range(5)), ("test", [5])):
        made = [cifar_records(4, seed) for seed in seeds]
        np.testing.assert_array_equal(arrays[f"x_{split}"], np.concatenate([m[0] for m in made]))
        np.testing.assert_array_equal(arrays[f"y_{split}"], np.concatenate([m[1] for m in made]))


def test_cifar_archives_that_are_damaged_or_hostile(tmp_path: Path) -> None:
    whole = cifar_archive(tmp_path).read_bytes()
    cut = tmp_path / "cut.tar.gz"
    for share in (0.0, 0.01, 0.5, 0.95):
        cut.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError):
            cifar10_arrays(cut)
    good = {name: cifar_records(2, 0)[2] for name in BATCHES}
    with pytest.raises(DataError, match=r"no cifar-10-batches-bin/test_batch\.bin"):
        cifar10_arrays(tarball(cut, {n: c for n, c in good.items() if n != "test_batch.bin"}))
    with pytest.raises(DataError, match="6145 bytes"):
        cifar10_arrays(tarball(cut, good | {"data_batch_3.bin": good["data_batch_3.bin"][:-1]}))
    with pytest.raises(DataError, match="0 bytes"):
        cifar10_arrays(tarball(cut, good | {"data_batch_3.bin": b""}))
    with tarfile.open(cut, "w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="plain file"):
        cifar10_arrays(cut)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without writing to standard error."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("BITSMITH_DATA", raising=False)
    return tmp_path / "xdg" / "bitsmith"


def source_of(name: str) -> Source:
    kind: Any = datasets[name]
    return kind.source


def use(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, *mirrors: str) -> None:
    """Point a data set at mirrors, with the checksums of the archives in ``folder``."""
    real = source_of(name)
    md5 = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in real.md5}
    source = dataclasses.replace(real, mirrors=mirrors, md5=md5)
    monkeypatch.setattr(datasets[name], "source", source)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_fills_the_cache_once(
    name: str, site: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    mnist_archives(folder)
    use(monkeypatch, name, folder, address + "nowhere/", address)
    train = load_dataset(name).split("train")
    np.testing.assert_array_equal(train.x, IMAGES)
    assert train.y.tolist() == LABELS.tolist()
    file = name.replace("-", "_") + ".npz"
    assert [p.name for p in cache.iterdir()] == [file]
    with np.load(cache / file, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["x_test"], IMAGES[:5])
    for archive in folder.iterdir():
        archive.unlink()
    assert load_dataset(name).split("test").n == 5


def test_cifar_from_a_server(
    site: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    cifar_archive(folder)
    use(monkeypatch, "cifar10", folder, address)
    dataset = load_dataset("cifar10")
    np.testing.assert_array_equal(dataset.split("test").x, cifar_records(4, 5)[0])
    assert dataset.split("train").n == 20
    assert "20 of its 50,000" in dataset.split("train").provenance
    assert sorted(p.name for p in cache.iterdir()) == ["cifar10-test.npz", "cifar10-train.npz"]


def test_the_folder_comes_before_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    for place, value in ((mine, 1), (cache, 2)):
        place.mkdir(parents=True)
        x = np.full((3, 32, 32, 3), value, np.uint8)
        np.savez(place / "cifar10-test.npz", x=x, y=np.zeros(3, np.uint8))
    assert load_dataset("cifar10").split("test").x.max() == 2
    monkeypatch.setenv("BITSMITH_DATA", str(mine))
    assert load_dataset("cifar10").split("test").x.max() == 1
    monkeypatch.setenv("BITSMITH_DATA", str(mine / "absent"))
    with pytest.raises(DataError, match="not a folder"):
        load_dataset("cifar10").split("test")


def test_altered_or_truncated_downloads_leave_nothing_behind(
    site: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    mnist_archives(folder)
    use(monkeypatch, "mnist", folder, address)
    victim = folder / IDX_FILES["y_test"]
    victim.write_bytes(victim.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"t10k-labels.*checksum.*truncated or altered"):
        load_dataset("mnist").split("test")
    assert list(cache.iterdir()) == []


def test_archive_with_the_right_checksum_that_is_damaged(
    site: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    mnist_archives(folder)
    (folder / IDX_FILES["x_test"]).write_bytes(idx(IMAGES)[:-100])
    use(monkeypatch, "mnist", folder, address)
    with pytest.raises(DataError, match="damaged or truncated"):
        load_dataset("mnist").split("test")
    assert list(cache.iterdir()) == []


def test_endless_downloads_are_cut_off(
    site: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    mnist_archives(folder)
    use(monkeypatch, "mnist", folder, address)
    source = dataclasses.replace(source_of("mnist"), most_bytes=100)
    monkeypatch.setattr(datasets["mnist"], "source", source)
    with pytest.raises(DataError, match="more than 100 bytes"):
        load_dataset("mnist").split("test")
    assert list(cache.iterdir()) == []


def test_no_data_and_no_network(
    site: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = site
    mnist_archives(folder)
    use(monkeypatch, "mnist", folder, "http://127.0.0.1:9/")
    with pytest.raises(DataError) as caught:
        load_dataset("mnist").split("test")
    message = str(caught.value)
    for part in ("'mnist'", "mnist.npz", str(cache), "127.0.0.1:9", "BITSMITH_DATA is not set"):
        assert part in message


def test_interruption_leaves_nothing_behind(
    site: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    mnist_archives(folder)
    use(monkeypatch, "mnist", folder, address)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitsmith.data.fetch.write_npz", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("mnist").split("test")
    assert list(cache.iterdir()) == []


def test_addresses_and_checksums_are_well_formed() -> None:
    for name in ("mnist", "fashion-mnist", "cifar10"):
        source = source_of(name)
        assert all(m.startswith("http") and m.endswith("/") for m in source.mirrors)
        assert all(len(bytes.fromhex(digest)) == 16 for digest in source.md5.values())
