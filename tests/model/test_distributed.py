"""Two processes train one model and share the work of a completion."""

import json
import os
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest

from lgdist_scvi import LGDiST

SCRIPT = """
import json, os, sys
import anndata as ad
import torch
from lgdist_scvi import LGDiST
from lgdist_scvi.model import _streaming

folder, options = sys.argv[1], json.loads(sys.argv[2])
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
save = _streaming.Blocks.save
_streaming.Blocks.save = lambda blocks, block, arrays: (saved.append(block), save(blocks, block, arrays))
model.write_completed(f"{folder}/completed.h5ad", n_samples=2, n_steps=2, batch_size=32, silent=True)
with open(f"{folder}/{rank}_blocks.json", "w") as file:
    json.dump(saved, file)
if rank == 0:
    model.save(f"{folder}/model", save_anndata=True)
"""


@pytest.mark.slow
def test_two_processes(small, tmp_path):
    small.tissue(n_spots=300).write_h5ad(tmp_path / "data.h5ad")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    options = json.dumps(small.OPTIONS)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [*command, sys.executable, "-c", SCRIPT, str(tmp_path), options],
        capture_output=True,
        check=False,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[:6000]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert set(first["losses"]) == {"autoencoder", "diffusion"} and first["steps"]["diffusion"] == 3
    assert all(np.isfinite(losses).all() for losses in first["losses"].values())
    # Each completed its part, in the same file.
    shared = [json.loads((tmp_path / f"{rank}_blocks.json").read_text()) for rank in range(2)]
    assert shared == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    written = ad.read_h5ad(tmp_path / "completed.h5ad")
    alone = LGDiST.load(tmp_path / "model").get_completed_expression(
        n_samples=2, n_steps=2, batch_size=32, silent=True, return_numpy=True
    )
    np.testing.assert_allclose(written.layers["lgdist"], alone, rtol=1e-6)
