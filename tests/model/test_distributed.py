"""Two processes train one model, as one does alone, and share the work of a completion."""

import json
import os
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest
import torch

from lgdist_scvi import LGDiST

SCRIPT = """
import json, os, socket, sys, time, traceback
import anndata as ad
import torch
from lgdist_scvi import LGDiST
from lgdist_scvi.model import _layers, _streaming

def work(folder, options):
    torch.set_num_threads(1)
    _streaming.BLOCK_BYTES = 1
    adata = ad.read_h5ad(f"{folder}/data.h5ad")
    LGDiST.setup_anndata(adata, layer="counts")
    model = LGDiST(adata, **options)
    model.train(
        max_epochs=3, batch_size=32, validation_size=0.1, accelerator="cpu", devices=2, strategy="ddp",
        enable_progress_bar=False,
    )
    rank = torch.distributed.get_rank()
    losses = {phase: table["validation_loss"].iloc[:, 0].tolist() for phase, table in model.history.items()}
    steps = {phase: len(table["train_loss"]) for phase, table in model.history.items()}
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump({"weights": model._weights_hash(), "losses": losses, "steps": steps}, file)
    saved = []
    save, write = _streaming.Blocks.save, _layers.write_extended
    # A file that takes its time: the other process must not wait for it, which would end by a time-out.
    _layers.write_extended = lambda *arguments: (time.sleep(1.5), write(*arguments))
    _streaming.Blocks.save = lambda blocks, block, arrays: (saved.append(block), save(blocks, block, arrays))
    model.write_completed(f"{folder}/completed.h5ad", n_samples=2, n_steps=2, batch_size=32, silent=True)
    with open(f"{folder}/{rank}_blocks.json", "w") as file:
        json.dump([saved, os.path.exists(f"{folder}/completed.h5ad")], file)
    if rank == 0:
        model.save(f"{folder}/model", save_anndata=True)

def fork(rank, arguments):
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

arguments = sys.argv[1], json.loads(sys.argv[2])
if "RANK" in os.environ:
    work(*arguments)
else:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    ranks = [fork(rank, arguments) for rank in range(2)]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in ranks))
"""
PYTHON = [sys.executable, "-c", SCRIPT]
# By torchrun, as a user starts it, or as copies of one process, which spares two imports.
COMMANDS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"],
    "fork": [],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "loss"), [pytest.param("torchrun", "counts", marks=pytest.mark.full), ("fork", "counts"), ("fork", "log")]
)
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_two_processes(small, tmp_path, start, loss):
    small.tissue(n_spots=300).write_h5ad(tmp_path / "data.h5ad")
    options = json.dumps(small.OPTIONS | {"loss": loss})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [*COMMANDS[start], *PYTHON, str(tmp_path), options],
        capture_output=True,
        check=False,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[:6000]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert set(first["losses"]) == {"autoencoder", "diffusion"} and first["steps"]["diffusion"] == 3
    # One process that takes both minibatches of a step learns the same.
    one = small.build(ad.read_h5ad(tmp_path / "data.h5ad"), {"loss": loss})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have
    small.fit(one, max_epochs=3, batch_size=32, devices=1, accumulate_grad_batches=2)
    torch.set_num_threads(threads)
    assert one._weights_hash() == first["weights"]
    alone_losses = {phase: table["validation_loss"].iloc[:, 0].tolist() for phase, table in one.history.items()}
    assert alone_losses == first["losses"]
    assert all(np.isfinite(losses).all() for losses in first["losses"].values())
    # Each completed its part, in the same file.
    shared = [json.loads((tmp_path / f"{rank}_blocks.json").read_text()) for rank in range(2)]
    assert shared == [[[0, 2, 4, 6, 8], True], [[1, 3, 5, 7, 9], False]]
    written = ad.read_h5ad(tmp_path / "completed.h5ad")
    alone = LGDiST.load(tmp_path / "model").get_completed_expression(
        n_samples=2, n_steps=2, batch_size=32, silent=True, return_numpy=True
    )
    np.testing.assert_allclose(written.layers["lgdist"], alone, rtol=1e-6)
