"""Shards in an object store: read by ranges, cached on the node, and never taken for what they are not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Store

from lsid_ray import storage
from lsid_ray.data import window
from lsid_ray.data.index import open_shards
from lsid_ray.errors import InputError
from lsid_ray.object_store import RemotePath, StoreError
from lsid_ray.storage import to_path


@pytest.fixture
def remote_shards(shards: Path, store: Store) -> RemotePath:
    """The tiny data set's shards in the object store."""
    folder = to_path("s3://bucket/test/shards")
    for name in storage.list_files(shards):
        storage.copy_file(shards / name, folder / name)
    return folder


def test_remote_windows_are_read_by_ranges_and_cached_on_the_node(
    remote_shards: RemotePath, shards: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    local, remote = open_shards(shards, ["train"]), open_shards(remote_shards, ["train"], cache_gb=0.1)
    pair = local.pairs[0]
    remote.long_window(pair, 0, 0, 1, 1)  # reads the footer too, once
    store.requests.clear()
    window = remote.long_window(pair, 70, 70, 20, 20)
    np.testing.assert_array_equal(window, local.long_window(pair, 70, 70, 20, 20))
    read = sum(size for verb, at, size in store.requests if verb == "GET" and "long" in at)
    assert 0 < read < 0.25 * pair.long.shard.bytes, "only the tile was read"
    np.testing.assert_array_equal(remote.target(pair), local.target(pair))
    store.requests.clear()
    np.testing.assert_array_equal(remote.target(pair), local.target(pair))
    assert not store.requests, "all of it was cached"
    (cache,) = tmp_path.glob("lsid-tile-cache-*")
    assert cache.stat().st_mode & 0o777 == 0o700
    for tile in cache.iterdir():
        tile.write_bytes(bytes([1, *tile.read_bytes()[1:]]))
    np.testing.assert_array_equal(remote.target(pair), local.target(pair))
    assert store.requests, "damaged tiles are read again"


def test_a_damaged_object_is_named(remote_shards: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = open_shards(remote_shards, ["train"]).pairs[0]
    victim = remote_shards / pair.long.shard.path
    other = next(
        p for p in open_shards(remote_shards, ["train"]).pairs if p.long.shard.path != pair.long.shard.path
    ).long
    good, start = victim.read_bytes(), len(victim.read_bytes()) // 20  # in the first tile
    flipped = good[:start] + bytes([good[start] ^ 1]) + good[start + 1 :]
    exchanged = (remote_shards / other.shard.path).read_bytes()
    monkeypatch.setattr(window, "_footer", window._footer.__wrapped__)  # not cached
    advice = r": restore it with jobs/pack\.py repair$"
    for content, reason in [
        (flipped, r"its content is not what the index says \(xxh128 \w{32}, expected \w{32}\)"),
        (bytes(len(good)), r"its content is not what the index says \(xxh128 \w{32}, expected \w{32}\)"),
        (good[:-1], rf"has {len(good) - 1} bytes, expected {len(good)}"),
        (exchanged, rf"(has {len(exchanged)} bytes, expected {len(good)}|is the shard of {other.shard.path}, .*)"),
        (None, "is missing"),
    ]:
        victim.unlink() if content is None else victim.write_bytes(content)
        with pytest.raises(InputError, match=rf"^{victim}: {reason}{advice}"):
            open_shards(remote_shards, ["train"]).long_window(pair, 0, 0, 8, 8)
    victim.write_bytes(exchanged)
    longer = replace(pair.long.shard, bytes=len(exchanged))
    with pytest.raises(InputError, match=rf"^{victim}: is the shard of {other.shard.path}, packed from .*{advice}"):
        window.read_window(str(remote_shards), longer, 0, 0, 8, 8)


def test_an_intact_object_that_cannot_be_read_is_the_stores_failure(
    remote_shards: RemotePath, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_shards(remote_shards, ["train"])

    def fail(*_: object) -> None:
        raise OSError("When reading: AWS Error NETWORK_CONNECTION\nmore")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile.read_row_groups", fail)
    with pytest.raises(StoreError, match="NETWORK_CONNECTION") as caught:
        opened.planes(opened.pairs[0])
    assert caught.value.filename == str(remote_shards / opened.pairs[0].short.shard.path)
    assert caught.value.strerror == "When reading: AWS Error NETWORK_CONNECTION"
    store.fault = lambda verb, at: "AccessDenied" if "short" in at else ""
    with pytest.raises(InputError, match=r"short/.*: access denied$"):
        opened.planes(opened.pairs[1])
