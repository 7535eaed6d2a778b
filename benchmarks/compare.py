#!/usr/bin/env python3
"""Score LGDiST and its peers on real sections with the shared harness, and keep what was scored.

    compare.py [--quick] [--sets SET ...] [--seeds SEED ...] [--methods METHOD ...]

Every result goes to RESULTS/SET_PROTOCOL_seedSEED.json as soon as it is there, so a stopped comparison goes on where it
was, and one that is complete runs nothing. A result is good for as long as what it was made from stays the same: the
data, the harness and its arguments, and for LGDiST the code. ``report.py`` renders what is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from scoring import ALONE, INSTALL, Harness, Record, add_interpreters
from sets import CASES, GROUPS, OURS, PEERS, QUICK, SCORES, SETS, Case

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOT_INSTALLED = "not installed: "
DIRTY = "dirty"
MODEL = "src/lgdist_scvi"
MEASURED = {"tree": MODEL, "adapter": "benchmarks/harness.py"}


class Store:
    """The results that are kept, one file for each case."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def load(self, case: Case) -> dict[str, Record]:
        """What is known of the case's input (``info``), and the records of its methods (``results``)."""
        path = self.folder / case.file
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"info": {}, "results": {}}

    def merge(self, case: Case, info: Record, records: dict[str, Record]) -> None:
        """Add records to those of the case, or replace them; a reader never sees half a file."""
        with self._locked():
            kept = self.load(case)
            content = {
                "info": {**kept["info"], **info},
                "results": dict(sorted({**kept["results"], **records}.items())),
            }
            partial = self.folder / f".{case.file}.partial"
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.folder / case.file)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads, and other comparisons into the same folder, out."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


class Code:
    """The code that is measured, as it stands in the last commit, or with ``dirty`` as it stands now.

    ``measured`` names its paths; by default the model's code and the adapter.
    """

    def __init__(self, *, dirty: bool, measured: dict[str, str] = MEASURED) -> None:
        self.paths = tuple(measured.values())
        self.changed = bool(self._git("status", "--porcelain", "--", *self.paths))
        if dirty and self.changed:
            self.key = {"tree": DIRTY}
        else:
            self.key = {name: self._git("rev-parse", f"HEAD:{path}") for name, path in measured.items()}
        self.commit = self._git("rev-parse", "--short=10", "HEAD")

    @staticmethod
    def _git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    def place(self, folder: Path) -> Path:
        """Folder with the code to run: a copy of the commit, so that it can be worked on while the comparison runs."""
        if self.key["tree"] == DIRTY:
            return ROOT
        if self.changed:
            sys.exit(
                f"{' or '.join(self.paths)} has changes that are not committed, so the results could not be told "
                f"from those of the last commit: commit them, give --{DIRTY}, or leave {OURS} out with --methods"
            )
        archive = folder / "code.tar"
        self._git("archive", f"--output={archive}", "HEAD", *self.paths)
        shutil.unpack_archive(archive, folder / "code", filter="data")
        return folder / "code"


def recipe_key(path: Path) -> str:
    """Hash of the part of a script that makes a result."""
    recipe = re.search("^# recipe begins.*^# recipe ends", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return hashlib.sha256(recipe.group().encode()).hexdigest()[:12]


def is_current(record: Record | None, key: Record, *, retry: bool) -> bool:
    """Whether a record was made from what there is now, so that its run need not be repeated."""
    if record is None or key.get("tree") == DIRTY or any(record.get(name) != value for name, value in key.items()):
        return False
    error = record.get("error", "")
    return not (error.startswith(NOT_INSTALLED) or (error and retry))


def _package(method: str) -> str:
    return method if method in (OURS, *INSTALL) else "classical"


def _in_groups(methods: list[str]) -> list[tuple[str, ...]]:
    """Methods that are run together, those that answer soonest first and our own before the peers that run alone."""
    alone = (OURS, *ALONE)
    together = tuple(method for method in methods if method not in alone)
    return [group for group in (together, *((m,) for m in alone if m in methods)) if group]


def _order(job: tuple[Case, tuple[str, ...]]) -> int:
    """The peers that run alone come last in all cases, as most take minutes: the others say most of what there is to say."""
    return ALONE.index(job[1][0]) + 1 if job[1][0] in ALONE else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = list(dict.fromkeys((OURS, *PEERS["A"], *PEERS["B"])))
    quick = f"{', '.join(QUICK)} with seed 0 only, and no run of {', '.join(ALONE)}; those that are kept stay"
    sets = f"only these sets or groups (default: dense); groups: {', '.join(GROUPS)}; sets: {', '.join(SETS)}"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--sets", nargs="+", choices=(*GROUPS, *SETS), metavar="SET", help=sets)
    parser.add_argument("--seeds", nargs="+", type=int, choices=(0, 1, 2), metavar="SEED", help="only these")
    parser.add_argument("--methods", nargs="+", choices=methods, metavar="METHOD", help=f"only: {', '.join(methods)}")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes at once (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="RESULTS", help="default: benchmarks/results")
    return parse_running(parser, arguments)


def parse_running(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Add the options that say how methods are run, and parse."""
    parser.add_argument("--timeout", type=int, default=3600, metavar="SECONDS", help="for one method (default: 3600)")
    parser.add_argument("--retry", action="store_true", help="run again what has failed or took too long")
    parser.add_argument(f"--{DIRTY}", action="store_true", help="run uncommitted code; such a result is never reused")
    add_interpreters(parser)
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="folder of bench/ and data/ (default: ../shared)"
    )
    options = parser.parse_args(arguments)
    cores = os.cpu_count() or 1
    options.threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // options.jobs))
    if shutil.which(options.peer_python) is None:
        parser.error(f"there is no interpreter {options.peer_python}")
    return options


def in_sets(names: Iterable[str]) -> set[str]:
    """Sets by their own names or by those of their groups."""
    return {name for given in names for name in GROUPS.get(given, (given,))}


def chosen(options: argparse.Namespace) -> dict[Case, list[str]]:
    """Cases and methods that the options ask for."""
    sets = in_sets(options.sets or ["dense"])
    cases = [case for case in CASES if not options.quick or (case.name in QUICK and case.seed == 0)]
    return {
        case: [method for method in case.methods if method in (options.methods or case.methods)]
        for case in cases
        if case.name in sets and case.seed in (options.seeds or (case.seed,))
    }


@contextlib.contextmanager
def started(options: argparse.Namespace) -> Iterator[Harness]:
    """The harness with a folder of its own, which is removed afterwards; nothing that it has started is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="lgdist-benchmark-") as folder:
        # Not resolved: the link of a virtual environment to its interpreter is what makes it one.
        peer_python = os.path.abspath(shutil.which(options.peer_python))
        shared, own = options.shared.resolve(), options.peers_folder
        harness = Harness(shared, peer_python, own, options.timeout, options.threads, Path(folder))
        try:
            yield harness
        finally:
            harness.stop()


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with started(options) as harness:
        compare(options, harness, Store(options.out.resolve()))


def compare(options: argparse.Namespace, harness: Harness, store: Store) -> None:
    """Run what is not kept yet, and keep it."""
    code = Code(dirty=options.dirty)
    published = harness.published()

    def key(case: Case, method: str) -> Record:
        return {**harness.key_of(case, method), **(code.key if method == OURS else {})}

    todo = {}
    for case, methods in chosen(options).items():
        kept = store.load(case)["results"]
        missing = [m for m in methods if not is_current(kept.get(m), key(case, m), retry=options.retry)]
        # They are from the defaults of the harness, and know nothing of other arguments.
        shipped = {} if SETS[case.name].arguments else published
        info, theirs = shipped.get((harness.data_key(case.name), case.protocol, case.seed), ({}, {}))
        reused = {m: theirs[m] for m in missing if m != OURS and m in theirs and "error" not in theirs[m]}
        if reused:
            store.merge(case, info, {m: {**record, **key(case, m), "source": "shared"} for m, record in reused.items()})
        todo[case] = [m for m in missing if m not in reused and not (options.quick and m in ALONE)]

    reasons = {}
    for peer in {_package(method): None for methods in todo.values() for method in methods if method != OURS}:
        reasons[peer] = harness.why_not(peer)
        if reasons[peer]:
            print(f"{harness.python(peer)} cannot run the {peer} peer ({reasons[peer]}): {INSTALL[peer]}", flush=True)
    for case, methods in todo.items():
        absent = {m: f"{NOT_INSTALLED}{reasons[_package(m)]}" for m in methods if reasons.get(_package(m))}
        if absent:
            store.merge(case, {}, {m: {"error": reason, **key(case, m)} for m, reason in absent.items()})
        todo[case] = [m for m in methods if m not in absent]

    jobs = sorted(((case, group) for case, methods in todo.items() for group in _in_groups(methods)), key=_order)
    total = left = sum(len(group) for _, group in jobs)
    print(f"{total} runs to do; results in {store.folder}", flush=True)
    place = code.place(harness.work) if any(group == (OURS,) for _, group in jobs) else None
    counting = threading.Lock()

    def run(case: Case, group: tuple[str, ...]) -> None:
        nonlocal left
        print(f"{case}: {', '.join(group)} ...", flush=True)
        scored = harness.score(case, group, place)
        if scored is None:
            return
        info, records = scored
        for method, record in records.items():
            record.update(key(case, method), source="run", **({"commit": code.commit} if method == OURS else {}))
        store.merge(case, info, records)
        with counting:
            for method, record in records.items():
                left -= 1
                score = SCORES[case.protocol]
                says = record.get("error") or f"{score} {record[score]:.4f} in {record['seconds']:.0f} s"
                print(f"[{total - left}/{total}] {case} {method}: {says}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for future in as_completed([pool.submit(run, *job) for job in jobs]):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            harness.stop()
            raise


if __name__ == "__main__":
    main()
