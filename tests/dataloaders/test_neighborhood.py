"""Minibatches of training: for one process and several, on the CPU and for a GPU; what is validated on."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

from lgdist_scvi.dataloaders import _neighborhood
from lgdist_scvi.dataloaders._ahead import ahead
from lgdist_scvi.dataloaders._neighborhood import CodeDataModule, NeighborhoodDataModule


def data_of(n_spots, batch_size=128, held_out=0.0):
    """Data of which only the numbers of the spots are looked at."""
    view = SimpleNamespace(n_spots=n_spots, gather=lambda rows: torch.from_numpy(rows))
    drawn = np.random.default_rng(0).random((n_spots, 5)) < held_out
    return NeighborhoodDataModule(view, view, sparse.csr_matrix(drawn), batch_size)


def trainer(n_processes=1, rank=0, accumulated=1, device="cpu"):
    return SimpleNamespace(
        world_size=n_processes,
        global_rank=rank,
        accumulate_grad_batches=accumulated,
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )


def minibatches(data, **options):
    data.trainer = trainer(**options)
    return [batch.tolist() for batch in data.train_dataloader()]


@pytest.mark.parametrize(
    ("n_spots", "n_processes", "n_steps"),
    [
        (300, 4, 1),
        (500, 8, 1),
        (258, 3, 1),
        (300, 1, 2),
        (255, 1, 2),
        (256, 1, 2),
        (3000, 4, 5),
        (3000, 16, 2),
        (100, 1, 1),
        (3, 4, 1),
    ],
)
def test_processes_share_the_minibatches_of_one(n_spots, n_processes, n_steps):
    data = data_of(n_spots)
    assert data.n_steps(n_processes) == n_steps
    alone = minibatches(data, accumulated=n_processes)
    assert len(alone) == n_steps * n_processes and all(alone)
    shared = [minibatches(data, n_processes=n_processes, rank=rank) for rank in range(n_processes)]
    assert [shared[place % n_processes][place // n_processes] for place in range(len(alone))] == alone
    used = [spot for batch in alone for spot in batch]
    if n_spots >= n_processes:
        # No spot twice, none left out but what makes no step, and minibatches alike.
        assert len({*used}) == len(used) > n_spots - 128 * n_processes
        assert max(map(len, alone)) - min(map(len, alone)) <= n_processes * n_steps


def test_spots_are_shuffled_by_seed_and_epoch():
    data = data_of(290, 100)
    loader = data.train_dataloader()
    assert len(loader) == data.n_steps() == 2 and data_of(590, 100).n_steps() == 5
    first, again = (torch.cat(list(loader)).tolist() for _ in range(2))
    assert len({*first}) == 200 and first == again
    loader.batch_sampler.sampler.set_epoch(1)
    assert torch.cat(list(loader)).tolist() != first
    data.seed = 1
    assert torch.cat(list(data.train_dataloader())).tolist() != first


def test_minibatches_for_a_gpu_are_gathered_beside_it():
    data = data_of(300, held_out=0.5)
    data.trainer = trainer(device="cuda")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert loader.pin_memory and loader.persistent_workers
        assert loader.num_workers == _neighborhood.GATHERING_PROCESSES
    data.trainer = trainer()
    assert not data.train_dataloader().pin_memory and data.train_dataloader().num_workers == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_other_processes_gather_the_same(monkeypatch):
    data = data_of(300, 64)
    alone = sorted(torch.cat(list(data.train_dataloader())).tolist())
    monkeypatch.setattr(torch.utils.data.DataLoader, "_is_role_distributed", False, raising=False)
    loader = data._loader(data.train_idx, data.view.gather, batch_size=64, num_workers=2)
    assert sorted(torch.cat(list(loader)).tolist()) == list(range(300))
    assert len(alone) == 256  # the last minibatch is dropped


@pytest.mark.parametrize(
    ("n_spots", "share", "n_held_out"), [(400, 0.05, 20), (10, 0.05, 1), (2, 0.9, 1), (50, 0.0, 0)]
)
def test_the_second_phase_holds_out_spots(n_spots, share, n_held_out):
    data = CodeDataModule(data_of(n_spots), share, seed=3)
    assert data.n_val == n_held_out and data.n_train == n_spots - n_held_out
    assert sorted([*data.train_idx, *data.val_idx]) == list(range(n_spots))
    same, other = (CodeDataModule(data_of(n_spots), share, seed) for seed in (3, 4))
    np.testing.assert_array_equal(data.val_idx, same.val_idx)
    if n_spots == 400:
        assert not np.array_equal(data.val_idx, other.val_idx)
    trained_on = torch.cat(list(data.train_dataloader())).unique().tolist()
    assert not set(trained_on) & set(data.val_idx)
    validated = [spot for batch in data.val_dataloader() for spot in batch.tolist()]
    assert set(validated) == set(data.val_idx)
    assert not n_held_out or len(validated) >= 256


def test_of_many_spots_a_limited_number_is_held_out(monkeypatch):
    monkeypatch.setattr(_neighborhood, "MAX_HOLDOUT_SPOTS", 30)
    assert CodeDataModule(data_of(1000), 0.5, seed=0).n_val == 30


def test_work_is_done_one_step_ahead():
    done, used = [], []

    def work(item):
        assert threading.current_thread() is not threading.main_thread()
        done.append(item)
        return item**2

    for item, result in ahead(range(5), work):
        used.append(item)
        assert result == item**2
    assert done == used == list(range(5))
    # Not further ahead than one.
    started = []
    go = ahead(range(9), started.append)
    next(go)
    go.close()
    assert len(started) <= 2
    assert list(ahead([], work)) == []


def test_failure_of_the_work_is_raised_where_it_is_used():
    with pytest.raises(ZeroDivisionError):
        list(ahead([1, 0], lambda item: 1 / item))


def test_lightning_has_another_order_in_every_epoch(small, monkeypatch):
    epochs = []
    drawn = _neighborhood.SharedMinibatches.__iter__

    def noted(minibatches):
        epochs.append([spot for batch in drawn(minibatches) for spot in batch])
        return drawn(minibatches)

    monkeypatch.setattr(_neighborhood.SharedMinibatches, "__iter__", noted)
    model = small.build(small.tissue())
    for _ in range(2):
        model.train_autoencoder(**(small.TRAIN | {"max_epochs": 2}))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs) == 4
