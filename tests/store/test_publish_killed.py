"""A publisher is killed at every step of a publish: a reader sees all or nothing, and the next one publishes."""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import obstore
import pytest

from eva_dist.store.store import Store
from eva_dist.store.verify import verify_store
from tests.store.artifacts import FILES, ONE, builder

ROOT = Path(__file__).parents[2]

_FORKS = """
import os, signal, sys
from pathlib import Path
import obstore
from eva_dist.store.store import Store
from tests.store.artifacts import ONE, builder

STEPS = [(obstore, "put"), *((os, name) for name in ("mkdir", "link", "rename", "replace", "symlink", "fsync"))]

def publish_and_die(root, at, overwrite):
    done = 0
    def dying(step):
        def run(*given, **named):
            nonlocal done
            done += 1
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*given, **named)
        return run
    for module, name in STEPS:
        setattr(module, name, dying(getattr(module, name)))
    Store(root).publish(ONE, "team/name", "v1", builder("new"), overwrite=overwrite)
    os._exit(0)

for line in sys.stdin:  # obstore's threads begin in the children alone
    root, at, overwrite = line.split()
    if (child := os.fork()) == 0:
        publish_and_die(root, int(at), overwrite == "True")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def publisher():
    """A process that forks a publisher which is killed before its n-th step, and tells how it ended."""
    with subprocess.Popen(
        [sys.executable, "-c", _FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, bufsize=1,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip

        def run(root: Path, at: int, overwrite: bool) -> int:
            process.stdin.write(f"{root} {at} {overwrite}\n")
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


def text_of(store: Store) -> str | None:
    """What a reader gets under the name, None if it is not there; every file verified."""
    if store.fingerprint_of("team/name", "v1") is None:
        return None
    snapshot = store.snapshot(store.resolve("team/name", "v1").fingerprint)
    contents = {path: store.read(snapshot.entry(path)) for path in FILES}
    return contents[FILES[0]].decode()


def folder_text(root: Path) -> str | None:
    """What a person finds under the name, None if it is not there."""
    folder = root / "team/name/v1"
    if not os.path.lexists(folder):
        return None
    assert (folder / FILES[1]).read_text() == "png" and (folder / "manifest.json").is_file()
    return (folder / FILES[0]).read_text()


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_every_step(publisher, tmp_path, overwrite):
    before = "old" if overwrite else None
    seen = set()
    for at in count(1):
        root = tmp_path / str(at)
        store = Store(str(root))
        if overwrite:
            store.publish(ONE, "team/name", "v1", builder("old"))
        code = publisher(root, at, overwrite)
        if code == 0:
            break
        assert code == -9
        assert text_of(store) in (before, "new") and folder_text(root) in (before, "new")
        seen.add((text_of(store), folder_text(root)))
        found = store.find(ONE)
        assert (found is not None) or before is None
        problems = [checked.problem for checked in verify_store(store) if checked.problem]
        assert [p for p in problems if "its folder is not there" not in p] == []
        published = store.publish(ONE, "team/name", "v1", builder("next"), overwrite=False)
        expected = found.manifest["text"] if found else "next"
        assert published.manifest["text"] == text_of(store) == folder_text(root) == expected
        assert [checked.problem for checked in verify_store(store) if checked.problem] == []
    assert at > 20 and (before, before) in seen


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_every_write_wherever_it_lies(store_url, monkeypatch, overwrite):
    """What a kill is to a server: no more requests come."""
    put = obstore.put

    class Killed(BaseException):
        pass

    for at in count(1):
        store, done = Store(f"{store_url}/{at}"), 0
        if overwrite:
            store.publish(ONE, "team/name", "v1", builder("old"))

        def dying(*given, at=at, **named):
            nonlocal done
            done += 1
            if done == at:
                raise Killed
            return put(*given, **named)

        monkeypatch.setattr(obstore, "put", dying)
        try:
            store.publish(ONE, "team/name", "v1", builder("new"), overwrite=overwrite)
            break
        except Killed:
            pass
        finally:
            monkeypatch.setattr(obstore, "put", put)
        found = store.find(ONE)
        assert text_of(store) == (found.manifest["text"] if overwrite else None)
        assert store.publish(ONE, "team/name", "v1", builder("next")).manifest["text"] == text_of(store)
        assert [c.problem for c in verify_store(store) if c.problem] == []
    assert at >= 4  # two blobs, the manifest, and the revision where it is new
