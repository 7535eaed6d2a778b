"""The command line: ``lgdist-scvi complete`` and ``lgdist-scvi demo``."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ._checks import LARGEST_SEED
from ._constants import Keys
from ._output import UserError, bookkeeping, check_target, say_to_stdout, write_aside
from ._quiet import few_messages
from .model._layers import check_key
from .model._options import Scale
from .model._saving import MODEL_FILE
from .module._read_outs import READ_OUTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

SETUP_OPTIONS = {
    "layer": "layer with the raw counts (default: X)",
    "spatial_key": "obsm key of the coordinates (default: spatial)",
    "library_key": "obs column that names the section of a spot; needed for several sections",
    "batch_key": "obs column with groups of spots that share an average profile (default: the sections)",
    "image_key": "obsm key of image embeddings",
    "observed_layer": "boolean layer, True where an entry was observed (default: everywhere)",
    "size_factor_key": "obs column with the depth of the spots over the whole transcriptome (default: the sum of counts)",
}
MOST, THREADS_PER_CORE = 2**31 - 1, 8
# Windows has no SIGHUP.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments; by default those of the process.

    Returns
    -------
    Exit status: 0 after success, 2 after a user error, 128 + the number of the signal that stopped it (130 after Ctrl-C).
    """
    options = _parser().parse_args(argv)
    with few_messages(), _stoppable() as received:
        try:
            options.run(options)
        except UserError as error:
            print(f"lgdist-scvi: error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            how = f"stopped by {received[0].name}" if received else "interrupted"
            print(f"lgdist-scvi: {how}, no output was written", file=sys.stderr)
            return 128 + (received[0] if received else signal.SIGINT)
    return 0


def complete(options: argparse.Namespace) -> None:
    """Complete the expression in one h5ad file and write it to another.

    Parameters
    ----------
    options
        Parsed options.

    Raises
    ------
    UserError
        If options or data are invalid; raised before training.
    """
    from .model import LGDiST

    if all(map(os.path.exists, (options.output, options.input))) and options.output.samefile(options.input):
        raise UserError(f"{options.output} is the input, which is never changed; name another output.")
    check_target(options.output, overwrite=options.overwrite)
    if options.save_model is not None:
        _check_model_folder(options)
    if options.std and options.read_out == "detected":
        raise UserError("--std needs --read-out expected; leave out one of the two.")
    if options.output.suffix != ".h5ad":
        raise UserError(
            f"{options.output} does not end in .h5ad, the format that is written; name the output OUT.h5ad."
        )
    _use_hardware(options)

    adata = _read(options.input)
    _check_names(adata)
    kept = bookkeeping(adata)
    setup = {name: value for name in SETUP_OPTIONS if (value := getattr(options, name)) is not None}
    setup["target_genes_key"] = options.target_genes_key
    with _user_errors():
        if options.n_genes is not None:
            adata = _select_genes(adata, options.n_genes, setup)
        LGDiST.setup_anndata(adata, **setup)
    model = LGDiST(adata, seed=options.seed)
    say = (lambda _: None) if options.quiet else say_to_stdout
    # No progress bar in log files.
    silent = options.quiet or not sys.stderr.isatty()
    say(f"{options.input}: {adata.n_obs} spots, {adata.n_vars} genes. Training.")
    with redirect_stdout(sys.stderr):
        model.train(options.max_epochs, accelerator=options.accelerator, devices=1, enable_progress_bar=not silent)
    if options.save_model is not None:
        try:
            model.save(options.save_model, overwrite=options.overwrite)
        except OSError as error:
            raise UserError(str(error)) from error

    scores = model.evaluate_completion(silent=silent)
    model.add_completed_layer(
        keep_observed=options.keep_observed,
        return_std=options.std,
        scale=options.scale,
        read_out=options.read_out,
        seed=options.seed,
        silent=silent,
    )
    adata.obsm[Keys.LATENT] = model.get_latent_representation(silent=silent)
    training = {"seed": options.seed} | ({} if options.max_epochs is None else {"max_epochs": options.max_epochs})
    adata.uns[Keys.UNS] |= {
        "setup": {name: value for name, value in setup.items() if value is not None},
        "training": training,
        "scores": scores,
    }
    write_aside(adata, options.output, overwrite=options.overwrite, kept=kept)
    say(f"\nScores on held-out entries:\n{scores.round(4).to_string()}\n\nWritten: {options.output}")


def demo(options: argparse.Namespace) -> None:
    """Complete a simulated tissue.

    Parameters
    ----------
    options
        Parsed options.
    """
    from ._demo import run_demo

    _use_hardware(options)
    run_demo(options.out, seed=options.seed, accelerator=options.accelerator)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lgdist-scvi", description="Complete spatial transcriptomics counts by latent gene diffusion (LGDiST)."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "complete",
        allow_abbrev=False,
        help="complete an h5ad file",
        description="Complete the expression in one h5ad file and write it to another.",
    )
    command.set_defaults(run=complete)
    command.add_argument("input", type=Path, metavar="IN.h5ad", help="file with raw counts and coordinates")
    command.add_argument("output", type=Path, metavar="OUT.h5ad", help="file to write")
    data = command.add_argument_group("data")
    for name, text in SETUP_OPTIONS.items():
        data.add_argument(f"--{name.replace('_', '-')}", metavar="KEY", help=text)
    genes = data.add_mutually_exclusive_group()
    genes.add_argument(
        "--target-genes-key", metavar="KEY", help="boolean var column, True for the genes that matter most"
    )
    genes.add_argument(
        "--n-genes",
        type=_positive,
        metavar="N",
        help="keep only the N genes that vary most in space, an eighth of them as target genes (default: all genes)",
    )
    training = command.add_argument_group("training")
    training.add_argument("--max-epochs", type=_positive, metavar="N", help="epochs of each training phase")
    values = command.add_argument_group("completed values")
    values.add_argument("--scale", choices=get_args(Scale), default="log1p", help="(default: %(default)s)")
    values.add_argument("--read-out", choices=tuple(READ_OUTS), default="expected", help="(default: %(default)s)")
    values.add_argument(
        "--keep-observed", action="store_true", help="keep detected entries as measured; sums are then too high"
    )
    values.add_argument("--std", action="store_true", help="also write the standard deviation")
    files = command.add_argument_group("files and messages")
    files.add_argument("--save-model", type=Path, metavar="DIR", help="also save the trained model")
    files.add_argument("--overwrite", action="store_true", help="replace an existing output")
    files.add_argument("--quiet", action="store_true", help="print errors and warnings only")

    command = commands.add_parser(
        "demo", allow_abbrev=False, help="complete a simulated tissue", description="Complete a simulated tissue."
    )
    command.set_defaults(run=demo)
    command.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder (default: %(default)s)")

    for command in commands.choices.values():
        command.add_argument("--seed", type=_seed, default=0, metavar="N", help="(default: %(default)s)")
        command.add_argument(
            "--accelerator", choices=["auto", "cpu", "gpu"], default="auto", help="(default: %(default)s)"
        )
        command.add_argument(
            "--threads", type=_positive, metavar="N", help="threads on the CPU (default: as PyTorch chooses)"
        )
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _seed(text: str) -> int:
    if _whole(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST_SEED}")
    return int(text)


def _positive(text: str) -> int:
    if not 1 <= _whole(text) <= MOST:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MOST}")
    return int(text)


def _read(path: Path) -> AnnData:
    import anndata

    # Unlike a Path, these take a name that is too long for one that is not there.
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist." if not os.path.exists(path) else f"{path} is not a file.")
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as h5ad: {error}") from error


def _select_genes(adata: AnnData, n_genes: int, setup: dict[str, Any]) -> AnnData:
    """Keep the genes that vary most in space, and register the columns that `pp.select_genes` writes."""
    from .pp import select_genes

    shared = ("layer", "spatial_key", "library_key", "observed_layer", "size_factor_key")
    known = {name: setup[name] for name in shared if name in setup}
    n_target = max(1, n_genes // 8)
    adata = select_genes(adata, n_target=n_target, n_context=n_genes - n_target, **known)
    setup["target_genes_key"] = Keys.TARGET_GENES
    setup.setdefault("size_factor_key", Keys.DEPTH)
    return adata


def _check_names(adata: AnnData) -> None:
    """Refuse a file in which others have the names of what is written."""
    try:
        check_key(adata.layers, adata.uns, Keys.LAYER, "the input")
    except ValueError as error:
        raise UserError(
            f"{str(error).partition(';')[0]}; rename it, because the completed layer has this name."
        ) from error
    if Keys.LATENT in adata.obsm and Keys.UNS not in adata.uns:
        raise UserError(
            f"the input has obsm[{Keys.LATENT!r}] already, not written by a completion; rename it, because the codes of the "
            "spots have this name."
        )


def _check_model_folder(options: argparse.Namespace) -> None:
    folder, overwrite = options.save_model, options.overwrite
    if not os.path.exists(folder):
        check_target(folder, overwrite=overwrite)
    elif not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name another one for --save-model.")
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} exists already; name another one for --save-model or add --overwrite.")
    if folder.resolve() == options.input.resolve().parent:
        raise UserError(
            f"{folder} is the folder of the input, which is never changed; name another one for --save-model."
        )
    if folder.resolve() == options.output.resolve():
        raise UserError(f"{folder} is the output; name another one for --save-model.")
    if (folder / MODEL_FILE).resolve() == options.output.resolve():
        raise UserError(f"{options.output} is the file of the model; name another output or folder for --save-model.")
    if folder.exists():
        check_target(folder / MODEL_FILE, overwrite=overwrite)


def _use_hardware(options: argparse.Namespace) -> None:
    import torch

    if options.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU; use --accelerator cpu.")
    if options.threads is not None:
        cores = os.cpu_count() or 1
        if options.threads > THREADS_PER_CORE * cores:
            raise UserError(f"--threads {options.threads} is out of proportion to {cores} cores; pass up to {cores}.")
        torch.set_num_threads(options.threads)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn errors of the checks into user errors, with arguments spelled as options."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        text = str(error.args[0] if error.args else error)
        names = "|".join([*SETUP_OPTIONS, "target_genes_key"])
        text = re.sub(rf"\b({names})=", lambda match: f"--{match[1].replace('_', '-')} ", text)
        raise UserError(text) from error


@contextmanager
def _stoppable() -> Iterator[list[signal.Signals]]:
    """Let signals that ask a process to stop act like Ctrl-C, so that temporary files are removed; lists those received.

    Lightning would make a SystemExit without a status of them.
    """
    received: list[signal.Signals] = []

    def stop(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    # Handlers belong to the main thread, and a signal that is ignored, as below nohup, stays so.
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in STOPPING if mine}
    before = {number: handler for number, handler in before.items() if handler is signal.SIG_DFL}
    try:
        for number in before:
            signal.signal(number, stop)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
