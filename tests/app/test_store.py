import errno
import hashlib
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.errors import Corrupt, StorageFull
from app.store import ArtefactStore


@pytest.fixture
def store(tmp_path):
    return ArtefactStore(tmp_path / "artefacts")


def files(store):
    return sorted(path.name for path in store.folder.rglob("*") if path.is_file())


def test_what_was_put_is_read_under_its_digest(store):
    sha256, size = store.put(b"parameters")
    assert sha256 == hashlib.sha256(b"parameters").hexdigest()
    assert size == 10
    assert store.read(sha256) == b"parameters"
    assert store.path(sha256) == store.folder / sha256[:2] / sha256


def test_the_same_bytes_are_written_once(store):
    sha256, _ = store.put(b"x")
    before = store.path(sha256).stat().st_ino
    store.put(b"x")
    assert store.path(sha256).stat().st_ino == before
    assert files(store) == [sha256]


def test_threads_that_put_the_same_bytes_at_once_leave_one_file(store):
    content = os.urandom(2**20)
    with ThreadPoolExecutor(8) as pool:
        [sha256] = {sha for sha, _ in pool.map(store.put, [content] * 16)}
    assert store.read(sha256) == content
    assert files(store) == [sha256]


def test_other_bytes_than_were_put_are_an_error(store):
    sha256, _ = store.put(b"parameters")
    store.path(sha256).write_bytes(b"parameterz")
    with pytest.raises(Corrupt, match=sha256):
        store.read(sha256)
    store.put(b"parameters")
    assert store.read(sha256) == b"parameters"


def test_a_missing_artefact_is_an_error(store):
    with pytest.raises(Corrupt, match="missing"):
        store.read("0" * 64)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 63, "0" * 63 + "G", "A" * 64, "0" * 64 + "\n"])
def test_only_a_digest_is_a_name(store, name):
    with pytest.raises(ValueError, match="not a sha256"):
        store.path(name)


def test_a_deleted_artefact_is_gone_and_may_be_deleted_again(store):
    sha256, _ = store.put(b"x")
    store.delete(sha256)
    store.delete(sha256)
    assert files(store) == []


def test_a_full_disk_leaves_no_part_of_a_file(store):
    store.put(b"small")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageFull, match="1000000 bytes") as raised:
            store.put(bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert raised.value.__cause__.errno == errno.EFBIG
    assert files(store) == [hashlib.sha256(b"small").hexdigest()]
    store.put(bytes(1_000_000))
