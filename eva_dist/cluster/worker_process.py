"""The process of a worker beside its driver, which asks it on a socket that is its standard input.

It begins to listen before its imports, so that it ends with its driver at any time.
"""

import gc
import importlib
import os
import pickle
import queue
import signal
import threading
import traceback
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from eva_dist.cluster.workers import BEGIN, THREADS

if TYPE_CHECKING:
    from eva_dist.cluster.gang_worker import GangWorker

_AHEAD = ("eva_dist.cluster.gang_worker", "datasets", "transformers.generation.utils")
"""What takes seconds to import: the driver is busy for longer before it asks for anything."""


class Calls:
    """Takes calls from the driver, each into the queue of its thread, and answers them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queues: dict[str, queue.SimpleQueue[tuple[str, bytes]]] = {
            thread: queue.SimpleQueue() for thread in ("", *THREADS.values())
        }
        self._sending = threading.Lock()
        self._worker: Future[GangWorker] = Future()

    def take(self) -> None:
        """Take calls until the driver is gone; then nothing is left to do, whatever this process is in."""
        try:
            while True:
                method = self._connection.recv_bytes().decode()
                self._queues[THREADS.get(method, "")].put((method, self._connection.recv_bytes()))
        except (EOFError, OSError):
            os._exit(0)

    def answer_all(self, thread: str) -> None:
        """Answer the calls of one thread, one after another, for ever."""
        while True:
            method, content = self._queues[thread].get()
            number, arguments = pickle.loads(content)
            try:
                is_good, content = True, pickle.dumps(self._call(method, arguments), pickle.HIGHEST_PROTOCOL)
            except BaseException as error:  # the driver decides what becomes of it
                is_good, content = False, pickle.dumps((traceback.format_exc(), _as_sent(error)))
            with self._sending:
                self._connection.send_bytes(pickle.dumps((number, is_good)))
                self._connection.send_bytes(content)

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if method != BEGIN:
            return getattr(self._worker.result(), method)(*arguments)
        make, *given = arguments
        try:
            self._worker.set_result(make(*given))
        except BaseException as error:
            self._worker.set_exception(error)  # whatever is asked of it has this for an answer
        return None


def _as_sent(error: BaseException) -> BaseException | None:
    """Return the error if it comes through whole, else None."""
    try:
        found = pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error if type(found) is type(error) and str(found) == str(error) else None


def main() -> None:
    """Answer the driver, as long as there is one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are the driver's to heed: it keeps a checkpoint first
    calls = Calls(Connection(os.dup(0)))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=calls.take, name="calls", daemon=True).start()
    gc.disable()  # a tenth of the time goes into looking for garbage, and imports leave none
    for module in _AHEAD:
        importlib.import_module(module)
    gc.enable()
    gc.freeze()
    for thread in dict.fromkeys(THREADS.values()):
        threading.Thread(target=calls.answer_all, args=(thread,), name=thread, daemon=True).start()
    calls.answer_all("")


if __name__ == "__main__":
    main()
