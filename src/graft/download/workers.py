"""Several files at a time, in threads that Ctrl-C ends at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread

from graft.download.listing import RepoFile

__all__ = ["side_by_side"]

_AT_A_TIME = 8


def side_by_side(work: Callable[[RepoFile, Event], None], files: Sequence[RepoFile]) -> None:
    """Do `work` for each file; where one fails, or on Ctrl-C, the event tells the others to stop.

    An executor would wait for its threads at the end, as long as a stalled hub lets them wait.
    """
    stop = Event()
    todo: SimpleQueue[RepoFile] = SimpleQueue()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    for file in files:
        todo.put(file)

    def run() -> None:
        while not stop.is_set():
            try:
                file = todo.get_nowait()
            except Empty:
                break
            try:
                work(file, stop)
            except BaseException as error:
                ended.put(error)
                return
        ended.put(None)

    threads = [Thread(target=run, daemon=True) for _ in files[:_AT_A_TIME]]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            error = ended.get()
            if error is not None:
                raise error
    finally:
        stop.set()
