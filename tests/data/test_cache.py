"""A file of the cache is made once, whoever asks for it at the same time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tianshou_ext.data.cache import cached


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TIANSHOU_EXT_CACHE", str(tmp_path))


def test_the_second_to_ask_waits_for_the_first(tmp_path, capsys):
    begun, made = threading.Event(), []

    def make(path):
        begun.set()
        time.sleep(0.3)
        made.append(path)
        path.write_text("whole")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cached, "level/a.hdf5", make)
        begun.wait(10)
        second = pool.submit(cached, "level/a.hdf5", make)
        paths = [first.result(10), second.result(10)]
    assert paths == [tmp_path / "level/a.hdf5"] * 2 == made * 2
    assert capsys.readouterr().out.startswith("waiting for another process that is making")


def test_what_is_there_is_not_made_again(tmp_path):
    (tmp_path / "there").write_text("old")
    assert cached("there", lambda path: pytest.fail("made again")).read_text() == "old"


def test_after_a_failure_the_next_one_tries_again():
    with pytest.raises(ZeroDivisionError):
        cached("a", lambda path: 1 / 0)
    assert cached("a", lambda path: path.write_text("new")).read_text() == "new"
