"""An attempt to train that answers Ctrl-C with a checkpoint."""

import threading
from collections.abc import Callable

from ray.train.torch import TorchTrainer

from lsid_ray.storage import AnyPath
from lsid_ray.train.monitor import Monitor
from lsid_ray.train.run_folder import checkpoint_step
from lsid_ray.train.run_log import RunLog

WAIT_S = 1.0  # between looks for the end of an attempt


def fit(trainer: TorchTrainer, monitor: Monitor, log: RunLog, folder: AnyPath, is_taken: Callable[[], bool]) -> None:
    """Run an attempt; at a Ctrl-C, have it save a checkpoint first.

    In a thread, because in the main thread `TorchTrainer.fit` would answer Ctrl-C itself, by ending the run at once
    and, later, the process with exit code 0 (ray 2.60).
    folder: of the run. is_taken: whether another driver has taken it over; then no checkpoint is saved.
    Raises: whatever the attempt raises; KeyboardInterrupt, with the step of the latest checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():  # as in a trial: there is no Ctrl-C
        trainer.fit()
        return
    errors: list[BaseException] = []
    ended, interrupted = threading.Event(), False

    def run() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    while not ended.is_set():  # a `join` that is interrupted takes the thread for ended (Python 3.11)
        try:
            ended.wait(WAIT_S)
        except KeyboardInterrupt:
            if interrupted or is_taken() or not monitor.stop():
                monitor.kill_workers()
                raise
            interrupted = True
            message = "stopping after this step, with a checkpoint; a second Ctrl-C does not wait for it"
            log.write({"kind": "warning", "message": message})
    if interrupted:
        raise KeyboardInterrupt(f"the same command resumes from step {checkpoint_step(folder)}")
    for error in errors:
        raise error
