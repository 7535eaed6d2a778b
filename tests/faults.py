"""Fault injector: what is written stays whole, whatever ends the writing, and at whichever moment.

``python tests/faults.py 200 [SEED]`` breaks 200 calls at random moments and prints what went wrong. Each call runs in a
process of its own, a copy of one that has imported everything. Tasks: the command line, `write_completed`, `save` over
an older model, `add_completed_table`. Faults: signals, a disk that is full or becomes read-only (simulated, and real ones
where this user may mount a file system in memory), a closed pipe, a second process that does the same. After each fault:
the input is unchanged, the output whole or absent, and the exit status 0 only if there is output; the call is repeated,
and gives what an unbroken one gives.
"""

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import anndata
import numpy as np
import spatialdata
import torch
from formats import as_spatialdata
from small_models import OPTIONS, TRAIN

from lgdist_scvi import LGDiST, cli
from lgdist_scvi.datasets import simulated_tissue
from lgdist_scvi.model import _streaming

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGKILL": signal.SIGKILL}
FAULTS = [*SIGNALS, "full disk", "read-only disk", "closed pipe", "second process"]
REAL_DISKS = ["full file system", "read-only file system"]
DISKS = ["full disk", "read-only disk", *REAL_DISKS]
HUNG = 300
LARGEST, ALL = 120_000, "64m"
"""Bytes of the largest file that a task writes, and size of a file system that has room for everything."""


class Task:
    """A call that writes, what it reads and what it writes."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared

    def prepare(self, folder: Path) -> None:
        pass

    def run(self, folder: Path) -> int:
        raise NotImplementedError

    def content(self, folder: Path) -> str | None:
        """Hash of the output; None if there is none. Fails if it is broken."""
        raise NotImplementedError

    def allowed(self, whole: str, before: str | None) -> set:
        return {whole, before}


def digest(*arrays) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


class CommandLine(Task):
    def run(self, folder):
        arguments = [
            "complete",
            str(self.shared / "in.h5ad"),
            str(folder / "out.h5ad"),
            "--layer",
            "counts",
            "--overwrite",
        ]
        return cli.main([*arguments, "--max-epochs", "1", "--accelerator", "cpu", "--std"])

    def content(self, folder):
        if not (folder / "out.h5ad").exists():
            return None
        adata = anndata.read_h5ad(folder / "out.h5ad")
        return digest(
            *(adata.layers[name] for name in ("lgdist", "lgdist_std", "lgdist_imputed")), adata.obsm["X_lgdist"]
        )


class Streamed(Task):
    suffix = ".h5ad"

    def run(self, folder):
        MODEL.write_completed(folder / f"out{self.suffix}", batch_size=16, silent=True, overwrite=True)
        return 0

    def content(self, folder):
        path = folder / f"out{self.suffix}"
        if not path.exists():
            return None
        adata = anndata.read_zarr(path) if self.suffix == ".zarr" else anndata.read_h5ad(path)
        return digest(*(np.asarray(adata.layers[name]) for name in ("lgdist", "lgdist_imputed")))


class StreamedZarr(Streamed):
    suffix = ".zarr"


class Saved(Task):
    """A model saved over an older one of the same spots."""

    def prepare(self, folder):
        shutil.copytree(self.shared / "older", folder / "model")

    def run(self, folder):
        MODEL.save(folder / "model", overwrite=True, save_anndata=True)
        return 0

    def content(self, folder):
        state = LGDiST.load(folder / "model").module.state_dict()
        return digest(*(value.numpy() for value in state.values()))


class Table(Task):
    """Layers of a table in a store; each is whole or absent."""

    def prepare(self, folder):
        shutil.copytree(self.shared / "store.zarr", folder / "store.zarr")

    def run(self, folder):
        sdata = spatialdata.read_zarr(folder / "store.zarr")
        table = LGDiST.setup_spatialdata(sdata, "counts")
        model = LGDiST.load(self.shared / "tables", adata=table)
        model.add_completed_table(sdata, silent=True)
        return 0

    def layers(self, folder):
        table = spatialdata.read_zarr(folder / "store.zarr")["table"]
        if digest(table.layers["counts"].toarray()) != COUNTS:
            raise AssertionError("the counts of the store changed")
        return [digest(table.layers[name]) if name in table.layers else None for name in ("lgdist", "lgdist_imputed")]

    def content(self, folder):
        return json.dumps(self.layers(folder))

    def allowed(self, whole, before):
        values, imputed = json.loads(whole)
        return {json.dumps([a, b]) for a in (values, None) for b in (imputed, None)}


TASKS = {"command line": CommandLine, "h5ad": Streamed, "zarr": StreamedZarr, "save": Saved, "table": Table}


def start(task: Task, folder: Path, fault: str | None = None, share: float = 0.0, seconds: float = 0.0) -> int:
    """Run a task in a copy of this process; returns its number once it has begun."""
    ready, begun = os.pipe()
    pid = os.fork()
    if pid:
        os.close(begun)
        os.read(ready, 1)
        os.close(ready)
        return pid
    status = 1
    try:
        os.close(ready)
        for number in SIGNALS.values():
            if number != signal.SIGKILL:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        log = os.open(folder.with_name(f"{folder.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        os.dup2(log, 1)
        if fault == "closed pipe":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        warnings.simplefilter("ignore")
        if fault == "full disk":
            limit = int(share * LARGEST)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        elif fault == "read-only disk":
            threading.Timer(share * seconds, _make_read_only).start()
        os.write(begun, b"x")
        status = task.run(folder)
        sys.stdout.flush()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001  it becomes the status
        with contextlib.suppress(OSError):
            traceback.print_exc()
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)


def _make_read_only() -> None:
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    os.replace = os.rename = os.mkdir = refuse
    # What is open already stays so.
    torch.save = refuse


def end(pid: int) -> int:
    """Status of a process as a shell gives it; a hung one is ended."""
    until = time.monotonic() + HUNG
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("it hangs")


def mount(folder: Path, options: str, *more: str) -> bool:
    """Mount a file system in memory, or mount it anew with other options; False where that is not allowed or it is in use."""
    if shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, *more, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def may_mount(folder: Path) -> bool:
    folder.mkdir()
    if may := mount(folder, "size=1m"):
        unmount(folder)
    return may


def fill_disk(folder: Path, share: float) -> None:
    """Leave a share of the room that a task needs."""
    stat = os.statvfs(folder)
    used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    if not mount(folder, f"remount,size={used + int(share * 2.5 * LARGEST)}"):
        raise RuntimeError("the file system could not be made small")


def make_disk_read_only(folder: Path, pid: int) -> None:
    """As soon as no file is open for writing."""
    while not mount(folder, "remount,ro") and os.path.exists(f"/proc/{pid}"):
        time.sleep(0.001)


def broken(
    task: Task, folder: Path, fault: str, share: float, whole: str, seconds: float
) -> tuple[list[str], list[int]]:
    """Break a call at a share of its time and repeat it; what is wrong, and the statuses of what was broken."""
    folder.mkdir()
    if fault not in REAL_DISKS:
        return _broken(task, folder, fault, share, whole, seconds)
    if not mount(folder, f"size={ALL}"):
        raise RuntimeError("no file system could be mounted")
    try:
        return _broken(task, folder, fault, share, whole, seconds)
    finally:
        unmount(folder)


def _broken(
    task: Task, folder: Path, fault: str, share: float, whole: str, seconds: float
) -> tuple[list[str], list[int]]:
    task.prepare(folder)
    before = task.content(folder)
    wrong = []
    if fault == "full file system":
        fill_disk(folder, share)
    pid = start(task, folder, fault, share, seconds)
    statuses = []
    if fault in SIGNALS:
        time.sleep(share * seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, SIGNALS[fault])
    elif fault == "second process":
        time.sleep(share * seconds)
        statuses.append(end(start(task, folder)))
    elif fault == "read-only file system":
        time.sleep(share * seconds)
        make_disk_read_only(folder, pid)
    statuses.append(end(pid))
    if fault in REAL_DISKS:
        mount(folder, f"remount,rw,size={ALL}")
    try:
        found = task.content(folder)
    except Exception as error:  # noqa: BLE001  a broken file can raise any error
        return [f"the output is broken: {type(error).__name__} {error}"], statuses
    if found not in task.allowed(whole, before):
        wrong.append("the output is neither that of before nor whole")
    if 0 in statuses and found != whole:
        wrong.append(f"status 0 without output ({statuses})")
    if fault in SIGNALS and statuses[0] not in (0, 128 + SIGNALS[fault]):
        wrong.append(f"status {statuses[0]} after {fault}")
    if fault == "closed pipe" and statuses != [0]:
        wrong.append(f"status {statuses[0]} after a closed pipe")
    if isinstance(task, CommandLine) and fault in DISKS and statuses[0] not in (0, 2):
        wrong.append(f"status {statuses[0]} after a {fault}")
    if hashlib.sha256((task.shared / "in.h5ad").read_bytes()).hexdigest() != INPUT:
        wrong.append("the input changed")
    again = end(start(task, folder))
    if again or task.content(folder) != whole:
        wrong.append(f"the call that was repeated (status {again}) gives something else")
    # What cannot be removed stays.
    if fault not in ("SIGKILL", "read-only file system") and (
        left := [name for name in os.listdir(folder) if name not in EXPECTED]
    ):
        wrong.append(f"it left {left}")
    return wrong, statuses


EXPECTED = ("out.h5ad", "out.zarr", "model", "store.zarr")


def main(n: int, seed: int = 0) -> int:
    """Break `n` calls; returns the number of those after which something is wrong."""
    global MODEL, INPUT, COUNTS
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _streaming.BLOCK_BYTES = 1
    shared = Path(tempfile.mkdtemp(prefix="faults_"))
    adata = simulated_tissue(100, 30, depth=1500)
    adata.write_h5ad(shared / "in.h5ad")
    sdata = as_spatialdata(adata.copy())
    sdata.write(shared / "store.zarr")
    LGDiST.setup_anndata(adata, "counts")
    MODEL = LGDiST(adata, **OPTIONS)
    MODEL.save(shared / "older", save_anndata=True)
    MODEL.train(**(TRAIN | {"max_epochs": 1}))
    # A model of the table, whose spots have other names and columns.
    table = LGDiST.setup_spatialdata(sdata, "counts")
    other = LGDiST(table, **OPTIONS)
    other.train(**(TRAIN | {"max_epochs": 1}))
    other.save(shared / "tables")
    INPUT = hashlib.sha256((shared / "in.h5ad").read_bytes()).hexdigest()
    COUNTS = digest(table.layers["counts"].toarray())
    draw = random.Random(seed)
    tasks, unbroken = {name: task(shared) for name, task in TASKS.items()}, {}
    for name, task in tasks.items():
        folder = shared / f"whole {name}"
        folder.mkdir()
        task.prepare(folder)
        began = time.monotonic()
        if end(start(task, folder)):
            raise RuntimeError(f"{name} fails by itself: {folder.with_name(f'{folder.name}.log').read_text()}")
        unbroken[name] = (task.content(folder), time.monotonic() - began)
    # Each task with each fault before any of them again.
    faults = [*FAULTS, *(REAL_DISKS if may_mount(shared / "mounted") else [])]
    pairs = [(name, fault) for name in tasks for fault in faults if fault != "closed pipe" or name == "command line"]
    failed, table = 0, {fault: Counter() for fault in faults}
    for number in range(n):
        if number % len(pairs) == 0:
            draw.shuffle(pairs)
        # Later moments more often: that is when files are written.
        (name, fault), share = pairs[number % len(pairs)], max(draw.random(), draw.random())
        folder = shared / str(number)
        try:
            wrong, statuses = broken(tasks[name], folder, fault, share, *unbroken[name])
        except Exception as error:  # noqa: BLE001  the next fault is tried anyway
            wrong, statuses = [f"{type(error).__name__} {error}"], []
        table[fault].update({"tried": 1, "ended the call": any(statuses), "wrong": bool(wrong)}, **{name: 1})
        if wrong:
            failed += 1
            log = folder.with_name(f"{folder.name}.log").read_text()[-1500:]
            print(f"{number}: {name}, {fault} at {share:.2f}: {'; '.join(wrong)}\n{log}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    for fault, counts in table.items():
        print(f"{fault}: {', '.join(f'{name} {number}' for name, number in counts.items())}")
    print(f"{n} faults, seed {seed}: {failed} went wrong")
    shutil.rmtree(shared)
    return failed


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])) > 0)
