"""Running methods on the shared harness: which interpreter runs which, whether it can, and ending what was started."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from sets import OURS, SETS, Case

DRIVERS = Path(__file__).resolve().parent / "peers"
# Packages that the harness does not know, each with a driver.
DRIVEN = ("stark", "graphst", "stagate", "nest")
# These can have an environment of their own, so each is run and kept on its own, about the fastest first; the other peers
# share one start of the harness.
ALONE = ("stark", "graphst", "stagate", "scvi", "resolvi", "nest", "spackle")
# What a peer needs beyond the packages of the classical ones.
INSTALL = {
    "classical": "pip install anndata scipy scikit-learn",
    "spatial_factors_eb": "pip install torch",
    "magic": "pip install magic-impute scprep --no-deps, then pip install graphtools decorator",
    "stark": "pip install stark-denoise",
    "stagate": "pip install stagate-modern",
    "nest": "pip install nest-st",
    "graphst": "pip install graphst-modern",
    "resolvi": "pip install scvi-tools squidpy",
    "scvi": "pip install scvi-tools",
    "spackle": "pip install spared",
}

Record = dict[str, Any]


class Harness:
    """The shared harness: its data, the results that come with it, and the processes that were started with it.

    Parameters
    ----------
    shared
        Folder of the harness (``bench/``) and of the sections (``data/``).
    peer_python
        Interpreter with the peers.
    peers_folder
        Folder of environments for single peers, each under the name of its peer.
    timeout
        Seconds that a method may take.
    threads
        Threads of a method.
    work
        Folder for what is written meanwhile.
    """

    def __init__(
        self, shared: Path, peer_python: str, peers_folder: Path | None, timeout: int, threads: int, work: Path
    ) -> None:
        self.bench, self.data = shared / "bench", shared / "data"
        self.peer_python, self.peers_folder = peer_python, peers_folder
        self.timeout, self.threads, self.work = timeout, threads, work
        scripts = [self.bench / name for name in ("completion.py", "methods.py", "run_spackle.py")]
        self._require(scripts)
        self.key = _sha256(scripts)
        # Nothing is written beside the harness, and what is left behind by a method that was ended goes with `work`.
        self.environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(work)}
        self._data_keys: dict[str, str] = {}
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
        """Hash of the files of a set, which are read once."""
        if name not in self._data_keys:
            self._data_keys[name] = _sha256(self.paths(name))
        return self._data_keys[name]

    def published(self) -> dict[tuple, tuple[Record, dict[str, Record]]]:
        """Peers' results that come with the harness, by data, protocol and seed."""
        found = {}
        for path in sorted(self.bench.glob("results/*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            info = content["info"]
            if info["mask"] != "unknown":
                found[info["sha256"], info["protocol"], info["seed"]] = info, content["results"]
        return found

    def python(self, peer: str) -> str:
        """Interpreter of a peer; those that are not run alone share one."""
        return interpreter(peer, self.peer_python, self.peers_folder if peer in ALONE else None)

    def key_of(self, case: Case, method: str) -> Record:
        """What a result of the method depends on apart from the code that is measured."""
        key: Record = {"data": self.data_key(case.name), "harness": self.key}
        # Nothing rather than no entry: a result with other arguments is not that of a set without.
        key["arguments"] = " ".join(SETS[case.name].arguments) or None
        if method in DRIVEN:
            key["driver"] = _sha256([DRIVERS / "contract.py", driver(method)])
        return key

    def why_not(self, peer: str) -> str | None:
        """Why a peer cannot run in its environment: the last line of what asking for its packages says."""
        installed = "import sys; from importlib.metadata import version; list(map(version, sys.argv[1:]))"
        arguments = {
            "classical": ["-c", installed, "anndata", "scipy", "scikit-learn"],
            "spatial_factors_eb": ["-c", installed, "torch"],
            "scvi": ["-c", installed, "scvi-tools"],
            # Imported for real, as they can be there without what they need.
            "magic": ["-c", "from magic import MAGIC"],
            "resolvi": ["-c", "from scvi.external import RESOLVI"],
            "spackle": [str(self.bench / "run_spackle.py"), "--help"],
            **{name: [str(driver(name)), "--help"] for name in DRIVEN},
        }[peer]
        run = subprocess.run(
            [self.python(peer), *arguments], cwd=self.work, env=self.environment, capture_output=True, text=True
        )
        return (run.stderr.strip().splitlines() or ["no message"])[-1] if run.returncode else None

    def score(self, case: Case, methods: tuple[str, ...], code: Path | None) -> tuple[Record, dict[str, Record]] | None:
        """What the harness knows of the case, and the scores of the methods; nothing once it was told to stop."""
        python, environment, arguments = self.python(methods[0]), self.environment, ["--methods", ",".join(methods)]
        if methods == (OURS,):
            assert code is not None
            python = sys.executable
            environment = {**environment, "PYTHONPATH": str(code / "src")}  # before an installed package
            arguments = ["--external", self._external(OURS, python, code / "benchmarks" / "harness.py")]
        elif methods[0] in (*DRIVEN, "spackle"):
            (method,) = methods
            script = driver(method) if method in DRIVEN else self.bench / "run_spackle.py"
            arguments = ["--external", self._external(method, python, script)]
            # The harness hides and scores in one environment, whatever else a peer's own one has.
            python = self.peer_python
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            command = [python, str(self.bench / "completion.py"), "--name", case.name, "--protocol", case.protocol]
            command += ["--data", ",".join(map(str, self.paths(case.name))), "--seed", str(case.seed), "--out", folder]
            command += ["--timeout", str(self.timeout), "--threads", str(self.threads)]
            command += [*SETS[case.name].arguments, *arguments]
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


def interpreter(peer: str, peer_python: str, peers_folder: Path | None) -> str:
    """Interpreter of a peer: that of its own environment if there is one, else the one with the peers."""
    # Not resolved: the link of a virtual environment to its interpreter is what makes it one.
    own = peers_folder and peers_folder.absolute() / peer / "bin" / "python"
    return str(own) if own and own.is_file() else peer_python


def add_interpreters(parser: argparse.ArgumentParser, packages: str = "the peers") -> None:
    """Add the options of :func:`interpreter`."""
    with_peers = f"interpreter of an environment with {packages}"
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help=with_peers)
    own = "folder of environments for single peers: FOLDER/PEER/bin/python runs the peer if it is there"
    parser.add_argument("--peers-folder", type=Path, metavar="FOLDER", help=own)


def driver(peer: str) -> Path:
    """Script that runs a package which the harness does not know."""
    return DRIVERS / f"run_{peer}.py"


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
