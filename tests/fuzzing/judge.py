"""Runs inputs in processes of their own, so that what ends the process is seen too, and says what became of each.

``python -m fuzzing.judge 500 [SEED]``, in the folder of the tests, tries 500 inputs and prints what went wrong.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

import lgdist_scvi

GROUPS = ("anndata", "spatialdata", "images", "folders", "arguments")
PACKAGE = str(Path(lgdist_scvi.__file__).parent)
SECONDS, SHORTEST = 120, 25
GOOD = ("refused", "warned", "used")


class Silent(AssertionError):
    """What was read is wrong, and nothing was said."""


class Misread(Silent):
    """What was read is wrong, which a warning excuses."""


class Harmful(AssertionError):
    """Data or files of the user were changed."""


def is_ours(error: BaseException) -> bool:
    """Whether a check of the package has raised an error, with a message."""
    if isinstance(error, TypeError) and ("unexpected keyword" in str(error) or "required positional" in str(error)):
        return True  # of Python, for arguments that a function does not have
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(PACKAGE) and (last.line or "").startswith("raise") and len(str(error)) > SHORTEST


def judged(use) -> tuple[str, str]:
    """What became of an input, and why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            use()
        except Silent as error:
            warned = isinstance(error, Misread) and any(issubclass(one.category, UserWarning) for one in caught)
            return ("warned" if warned else "silent"), str(error)
        except Harmful as error:
            return "harmful", str(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001  any error of any package
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if is_ours(error):
                return "refused", text
            return "foreign", f"{text}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
    return "used", ""


def attempted(group, seed: int, number: int, folder: Path) -> tuple[list[str], str, str]:
    """Kinds of the changes of one input, what became of it, and why."""
    folder.mkdir()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            torch.set_num_threads(1)
            rng = np.random.default_rng([seed, number])
            warnings.simplefilter("ignore")
            kinds, use = group.draw(rng, folder)
            os.write(writer, json.dumps(kinds).encode() + b"\n")
            os.write(writer, json.dumps(judged(use)).encode())
        except BaseException:  # noqa: BLE001  of the test itself
            os.write(writer, json.dumps(["broken test", traceback.format_exc()]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    until, status = time.monotonic() + SECONDS, None
    with open(reader, "rb") as pipe:
        while status is None and time.monotonic() < until:
            done, ended = os.waitpid(pid, os.WNOHANG)
            status = os.waitstatus_to_exitcode(ended) if done else time.sleep(0.005)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        kinds, _, outcome = pipe.read().partition(b"\n")
    shutil.rmtree(folder, ignore_errors=True)
    kinds = json.loads(kinds or b'["nothing drawn"]')
    if outcome:
        return kinds, *json.loads(outcome)
    return kinds, "harmful", "it hangs" if status is None else f"the process ended with {status}"


def run(names, n: int, seed: int, say=print) -> int:
    """Try `n` inputs of the groups in turn; returns the number of those that went wrong."""
    shared = Path(tempfile.mkdtemp(prefix="fuzz_"))
    groups, wrong, failed = {}, 0, []
    table: dict[str, Counter] = {name: Counter() for name in names}
    kinds_of: dict[str, Counter] = {name: Counter() for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            groups[name] = import_module(f"fuzzing.{name}")
            (shared / name).mkdir()
            groups[name].prepare(shared / name)
    for number in range(n):
        name = names[number % len(names)]
        kinds, outcome, why = attempted(groups[name], seed, number, shared / f"{number}")
        table[name][outcome] += 1
        kinds_of[name].update(kinds)
        if outcome not in GOOD:
            wrong += 1
            failed.append(number)
            say(f"{number}: {name}, {', '.join(kinds)}: {outcome}: {why}")
        elif "FUZZ_SHOW" in os.environ:
            say(f"{number}: {name}, {', '.join(kinds)}: {outcome}: {why}")
    for name, counts in table.items():
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds_of[name].items()))
        say(f"{name}: {', '.join(f'{kind} {number}' for kind, number in counts.items())} ({kinds})")
    say(f"{n} inputs, seed {seed}: {wrong} went wrong")
    shutil.rmtree(shared, ignore_errors=True)
    return wrong


if __name__ == "__main__":
    # As a module of its own name, whose errors the groups raise.
    sys.exit(import_module("fuzzing.judge").run(GROUPS, int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0) > 0)
