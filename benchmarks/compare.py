#!/usr/bin/env python3
"""Score LGDiST and its peers on real sections with the shared harness, and keep what was scored.

    compare.py [--quick] [--sets SET ...] [--seeds SEED ...] [--methods METHOD ...]

Every result goes to RESULTS/SET_PROTOCOL_seedSEED.json as soon as it is there, so a stopped comparison goes on where it
was, and one that is complete runs nothing. A result is good for as long as what it was made from stays the same: the
data, the harness, and for LGDiST the code. ``report.py`` renders what is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS = "lgdist"
# The methods that answer the question of each protocol; the gene means give the scale.
PEERS = {
    "A": tuple(
        "ridge_nz knn_mix_nz svd_nz laplacian_nz knn18_nz knn6_nz depth_nz gene_mean_nz median magic scvi spackle".split()
    ),
    "B": tuple("knn_eb ridge_eb knn_mix svd laplacian knn18 gene_mean median magic scvi spackle".split()),
}
SCORES = {"A": "mse", "B": "d2"}
# These take minutes, so each runs on its own and is kept on its own; the other peers share one start of the harness.
SLOW = ("scvi", "spackle")
# What a peer needs beyond the packages of the classical ones.
INSTALL = {
    "classical": "pip install anndata scipy scikit-learn",
    "magic": "pip install magic-impute scprep --no-deps, then pip install graphtools decorator",
    "scvi": "pip install scvi-tools",
    "spackle": "pip install spared",
}
NOT_INSTALLED = "not installed: "
DIRTY = "dirty"
MODEL = "src/lgdist_scvi"
MEASURED = {"tree": MODEL, "adapter": "benchmarks/harness.py"}

Record = dict[str, Any]


@dataclass(frozen=True)
class Sections:
    """Sections that are scored together, as files below ``data/``."""

    title: str
    files: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)


def _files(pattern: str, *sections: int) -> tuple[str, ...]:
    return tuple(pattern.format(section) for section in sections)


_CORTEX = "dlpfc_visium_{}.h5ad"
_HIPPO = "mouse_hippocampus_st_Hippo{}.h5ad"
_MOB = "mouse_olfactory_bulb_st_MOB{}.h5ad"
_HER2 = "her2_breast_st_patientC/her2_breast_st_C{}.h5ad"
QUICK = {
    "cortex_151674": Sections("cortex 151674", _files(_CORTEX, 151674), (0, 1, 2)),
    "crc16": Sections("tumour CRC16", ("crc_visium_CRC16.h5ad",), (0, 1, 2)),
    "hippo1": Sections("mouse brain Hippo1", _files(_HIPPO, 1), (0, 1, 2)),
    "mob1": Sections("olfactory bulb MOB1", _files(_MOB, 1), (0, 1, 2)),
    "her2_c4": Sections("breast tumour C4", _files(_HER2, 4), (0, 1, 2)),
}
SETS = {
    **QUICK,
    "cortex_151673": Sections("cortex 151673", _files(_CORTEX, 151673)),
    "cortex_151675": Sections("cortex 151675", _files(_CORTEX, 151675)),
    "cortex_151676": Sections("cortex 151676", _files(_CORTEX, 151676)),
    "cortex_all": Sections("cortex, 4 sections", _files(_CORTEX, 151673, 151674, 151675, 151676)),
    "hippo_all": Sections("mouse brain, 8 sections", _files(_HIPPO, *range(1, 9))),
    "mob_all": Sections("olfactory bulb, 4 sections", _files(_MOB, *range(1, 5))),
    "her2_all": Sections("breast tumour, 6 sections", _files(_HER2, *range(1, 7))),
}


@dataclass(frozen=True)
class Case:
    """One input of the methods: a set, a protocol and a seed."""

    name: str
    protocol: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name} {self.protocol} seed {self.seed}"

    @property
    def methods(self) -> tuple[str, ...]:
        return (OURS, *PEERS[self.protocol])

    @property
    def file(self) -> str:
        return f"{self.name}_{self.protocol}_seed{self.seed}.json"


CASES = [Case(name, p, seed) for name, sections in SETS.items() for seed in sections.seeds for p in SCORES]


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


class Harness:
    """The shared harness: its data, the results that come with it, and the processes that were started with it."""

    def __init__(self, shared: Path, peer_python: str, timeout: int, threads: int, work: Path) -> None:
        self.bench, self.data = shared / "bench", shared / "data"
        self.peer_python, self.timeout, self.threads, self.work = peer_python, timeout, threads, work
        scripts = [self.bench / name for name in ("completion.py", "methods.py", "run_spackle.py")]
        self._require(scripts)
        self.key = _sha256(scripts)
        # Nothing is written beside the harness, and what is left behind by a method that was ended goes with `work`.
        self.environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(work)}
        self._running: set[subprocess.Popen] = set()
        self._stopping = threading.Event()

    def _require(self, paths: list[Path]) -> None:
        for path in paths:
            if not path.is_file():
                sys.exit(f"{path} is missing; name the folder that holds bench/ and data/ with --shared")

    def paths(self, name: str) -> list[Path]:
        """Files of a set, which must be there."""
        paths = [self.data / file for file in SETS[name].files]
        self._require(paths)
        return paths

    def data_key(self, name: str) -> str:
        """Hash of the files of a set."""
        return _sha256(self.paths(name))

    def published(self) -> dict[tuple, tuple[Record, dict[str, Record]]]:
        """Peers' results that come with the harness, by data, protocol and seed."""
        found = {}
        for path in sorted(self.bench.glob("results/*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            info = content["info"]
            if info["mask"] != "unknown":
                found[info["sha256"], info["protocol"], info["seed"]] = info, content["results"]
        return found

    def why_not(self, peer: str) -> str | None:
        """Why a peer cannot run in the peers' environment: the last line of what asking for its packages says."""
        installed = "import sys; from importlib.metadata import version; list(map(version, sys.argv[1:]))"
        arguments = {
            "classical": ["-c", installed, "anndata", "scipy", "scikit-learn"],
            "scvi": ["-c", installed, "scvi-tools"],
            # Imported for real, as they can be there without what they need.
            "magic": ["-c", "from magic import MAGIC"],
            "spackle": [str(self.bench / "run_spackle.py"), "--help"],
        }[peer]
        run = subprocess.run(
            [self.peer_python, *arguments], cwd=self.work, env=self.environment, capture_output=True, text=True
        )
        return (run.stderr.strip().splitlines() or ["no message"])[-1] if run.returncode else None

    def score(self, case: Case, methods: tuple[str, ...], code: Path | None) -> tuple[Record, dict[str, Record]] | None:
        """What the harness knows of the case, and the scores of the methods; nothing once it was told to stop."""
        python, environment, arguments = self.peer_python, self.environment, ["--methods", ",".join(methods)]
        if methods == (OURS,):
            assert code is not None
            python = sys.executable
            environment = {**environment, "PYTHONPATH": str(code / "src")}  # before an installed package
            arguments = ["--external", self._external(OURS, python, code / "benchmarks" / "harness.py")]
        elif methods == ("spackle",):
            arguments = ["--external", self._external("spackle", python, self.bench / "run_spackle.py")]
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            command = [python, str(self.bench / "completion.py"), "--name", case.name, "--protocol", case.protocol]
            command += ["--data", ",".join(map(str, self.paths(case.name))), "--seed", str(case.seed), "--out", folder]
            command += ["--timeout", str(self.timeout), "--threads", str(self.threads), *arguments]
            _, message = self.call(command, environment)
            if self._stopping.is_set():
                return None
            files = list(Path(folder).glob("*.json"))
            if not files:
                return {}, {method: {"error": f"the harness failed: {message}"} for method in methods}
            content = json.loads(files[0].read_text(encoding="utf-8"))
        for record in content["results"].values():
            if record.get("error", "").startswith("exit -9") and record["seconds"] >= self.timeout:
                record["error"] = _too_late(self.timeout)
        return content["info"], {method: content["results"][method] for method in methods}

    @staticmethod
    def _external(name: str, python: str, script: Path) -> str:
        return f"{name}={shlex.quote(python)} {shlex.quote(str(script))} {{input}} {{output}}"

    def call(self, command: list[str], environment: dict[str, str], timeout: int | None = None) -> tuple[int, str]:
        """Run a command; its exit status, and the last line of what it says."""
        process = subprocess.Popen(
            command,
            cwd=self.work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # An interrupt is for us to pass on: the harness would leave the method behind that it has started.
            start_new_session=True,
        )
        self._running.add(process)
        if self._stopping.is_set():
            _kill(process.pid)
        late = False
        try:
            output = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            late = True
            _kill(process.pid)
            output = process.communicate()[0]
        self._running.discard(process)
        message = (output.strip().splitlines() or ["no message"])[-1]
        return process.returncode, _too_late(timeout) if late else message

    def stop(self) -> None:
        """End what runs, with all that it has started."""
        self._stopping.set()
        for process in list(self._running):
            _kill(process.pid)


def _too_late(timeout: int | None) -> str:
    return f"no result within {timeout} s"


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)  # so that it starts nothing more meanwhile
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                _kill(int(child))
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def _sha256(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def is_current(record: Record | None, key: Record, *, retry: bool) -> bool:
    """Whether a record was made from what there is now, so that its run need not be repeated."""
    if record is None or key.get("tree") == DIRTY or any(record.get(name) != value for name, value in key.items()):
        return False
    error = record.get("error", "")
    return not (error.startswith(NOT_INSTALLED) or (error and retry))


def _package(method: str) -> str:
    return method if method in (OURS, *INSTALL) else "classical"


def _in_groups(methods: list[str]) -> list[tuple[str, ...]]:
    """Methods that are run together, those that answer soonest first and our own before the slow peers."""
    alone = (OURS, *SLOW)
    together = tuple(method for method in methods if method not in alone)
    return [group for group in (together, *((m,) for m in alone if m in methods)) if group]


def _order(job: tuple[Case, tuple[str, ...]]) -> int:
    """The slow peers of all cases come last: the other results say most of what there is to say."""
    return SLOW.index(job[1][0]) + 1 if job[1][0] in SLOW else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = list(dict.fromkeys((OURS, *PEERS["A"], *PEERS["B"])))
    quick = f"{', '.join(QUICK)} with seed 0 only, and no run of {' and '.join(SLOW)}; those that are kept stay"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--sets", nargs="+", choices=SETS, metavar="SET", help=f"only these of: {', '.join(SETS)}")
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
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="interpreter with the peers")
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="folder of bench/ and data/ (default: ../shared)"
    )
    options = parser.parse_args(arguments)
    cores = os.cpu_count() or 1
    options.threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // options.jobs))
    if shutil.which(options.peer_python) is None:
        parser.error(f"there is no interpreter {options.peer_python}")
    return options


def chosen(options: argparse.Namespace) -> dict[Case, list[str]]:
    """Cases and methods that the options ask for."""
    cases = [case for case in CASES if not options.quick or (case.name in QUICK and case.seed == 0)]
    return {
        case: [method for method in case.methods if method in (options.methods or case.methods)]
        for case in cases
        if case.name in (options.sets or SETS) and case.seed in (options.seeds or (case.seed,))
    }


@contextlib.contextmanager
def started(options: argparse.Namespace) -> Iterator[Harness]:
    """The harness with a folder of its own, which is removed afterwards; nothing that it has started is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="lgdist-benchmark-") as folder:
        # Not resolved: the link of a virtual environment to its interpreter is what makes it one.
        peer_python = os.path.abspath(shutil.which(options.peer_python))
        harness = Harness(options.shared.resolve(), peer_python, options.timeout, options.threads, Path(folder))
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
    data = {name: harness.data_key(name) for name in {case.name for case in chosen(options)}}

    def key(case: Case, method: str) -> Record:
        return {"data": data[case.name], "harness": harness.key, **(code.key if method == OURS else {})}

    todo = {}
    for case, methods in chosen(options).items():
        kept = store.load(case)["results"]
        missing = [m for m in methods if not is_current(kept.get(m), key(case, m), retry=options.retry)]
        info, theirs = published.get((data[case.name], case.protocol, case.seed), ({}, {}))
        reused = {m: theirs[m] for m in missing if m != OURS and m in theirs and "error" not in theirs[m]}
        if reused:
            store.merge(case, info, {m: {**record, **key(case, m), "source": "shared"} for m, record in reused.items()})
        todo[case] = [m for m in missing if m not in reused and not (options.quick and m in SLOW)]

    reasons = {}
    for peer in {_package(method): None for methods in todo.values() for method in methods if method != OURS}:
        reasons[peer] = harness.why_not(peer)
        if reasons[peer]:
            print(f"{harness.peer_python} cannot run the {peer} peer ({reasons[peer]}): {INSTALL[peer]}", flush=True)
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
