"""Threads that were started in time run what would start later; the ones of CPython 3.12.0 and 3.12.1 at exit."""

import subprocess
import sys
import threading

import pytest

from turnppo_hf.hub import background, late_threads
from turnppo_hf.hub.background import BackgroundPushes
from turnppo_hf.hub.late_threads import LateThreads

pytestmark = pytest.mark.skipif(
    not hasattr(threading, "_start_new_thread"), reason="Python 3.13 starts threads in another way"
)


def test_late_threads_run_beside_each_other_and_are_used_once(monkeypatch):
    monkeypatch.setattr(late_threads, "_SPARE", 2)
    late, together, ran = LateThreads(), threading.Barrier(2, timeout=20), threading.Barrier(3, timeout=20)

    def work(number):
        together.wait()
        names.add((number, threading.current_thread() is threading.main_thread()))
        ran.wait()

    names = set()
    for number in range(2):
        late.start(work, (number,))
    ran.wait()
    assert names == {(0, False), (1, False)}
    with pytest.raises(RuntimeError, match="can't start new thread: the 2 "):
        late.start(work, (2,))


AT_EXIT = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from turnppo_hf.hub.late_threads import STARTS_NONE_AT_EXIT, LateThreads

late = LateThreads()
worker, leave = ThreadPoolExecutor(1), threading.Event()

def upload():
    leave.wait(20)
    with ThreadPoolExecutor(5) as pool:
        print(sum(pool.map(abs, range(-20, 0))))
    thread = threading.Thread(target=print, args=("committed",))
    thread.start()
    thread.join()

job = worker.submit(upload)

def finish():
    if "late" in sys.argv:
        late.replace()
    leave.set()
    job.exception()
    print(STARTS_NONE_AT_EXIT, type(job.exception()).__name__)

threading._register_atexit(finish)
"""


@pytest.mark.parametrize("given", ["late", ""])
def test_threads_start_while_the_program_ends(given):
    ended = subprocess.run([sys.executable, "-c", AT_EXIT, given], capture_output=True, text=True, check=False)
    broken = sys.version_info[:3] in ((3, 12, 0), (3, 12, 1))
    worked = ["210", "committed", f"{broken} NoneType"]
    # the control: these two versions refuse
    expected = worked if given or not broken else ["True RuntimeError"]
    assert ended.stdout.splitlines() == expected, ended.stderr


@pytest.mark.parametrize("broken", [True, False])
def test_pushes_keep_threads_for_the_end_where_python_starts_none(broken, monkeypatch):
    monkeypatch.setattr(threading, "_threading_atexits", [])  # of this test, dropped with it
    monkeypatch.setattr(threading, "_start_new_thread", threading._start_new_thread)  # put back at its end
    monkeypatch.setattr(background, "STARTS_NONE_AT_EXIT", broken)
    monkeypatch.setattr(late_threads, "_SPARE", 3)
    pushes, go, uploaded = BackgroundPushes(), threading.Event(), []

    def push():
        go.wait(20)
        upload = threading.Thread(target=uploaded.append, args=("part",))
        upload.start()
        upload.join()

    pushes.submit(push)
    late = pushes._late_threads
    assert (late is not None) == broken
    wait = pushes.wait
    monkeypatch.setattr(pushes, "wait", lambda: (go.set(), wait())[1])  # the end of the program waits, then it uploads
    [at_exit] = threading._threading_atexits
    at_exit()
    assert uploaded == ["part"] and not pushes.is_busy
    assert late is None or late._left == 2
