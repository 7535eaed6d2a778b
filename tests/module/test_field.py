"""The latent field: what it recovers, what it may see, what it learns of smoothness, and its linear algebra."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from lgdist_scvi.data._batch import Batch
from lgdist_scvi.data._hidden import Hidden
from lgdist_scvi.data._pooling import N_POOLS
from lgdist_scvi.data._tissue import Tissue
from lgdist_scvi.module import _field, _field_codes, _field_fit, _markov
from lgdist_scvi.module._field import LatentField
from lgdist_scvi.module._markov import Precision
from lgdist_scvi.module._noise import noise_of
from lgdist_scvi.module._normalisation import log_normalise

SIDE, G, K = 24, 50, 2
N = SIDE**2
CPU = torch.device("cpu")


def grid():
    """Graph of a square lattice."""
    place = np.arange(N).reshape(SIDE, SIDE)
    pairs = np.concatenate([
        np.stack([place[:, 1:].ravel(), place[:, :-1].ravel()]),
        np.stack([place[1:].ravel(), place[:-1].ravel()]),
    ], axis=1)  # fmt: skip
    graph = sparse.csr_matrix((np.ones(pairs.shape[1]), pairs), shape=(N, N))
    return (graph + graph.T).tocsr()


def tissue_of(counts, hidden, depth=None):
    """A view of the visible counts, and the tissue of all its spots."""
    kept = sparse.csr_matrix(np.where(hidden, 0, counts).astype(np.float32))
    depth = np.asarray(kept.sum(axis=1)).ravel() + 1 if depth is None else depth
    entries = Hidden.unobserved(sparse.csr_matrix(~hidden))
    view = SimpleNamespace(
        counts=kept, hidden=entries, depth=depth.astype(np.float32), graph=grid(), n_genes=G, n_spots=N
    )
    view.section, view.wide = np.zeros(N, dtype=int), grid()
    return view, Tissue(view, np.arange(N), CPU)


class Simulated:
    """A smooth factor, and one that is independent between spots; a fifth of the entries and some spots are hidden."""

    def __init__(self, depth=400.0):
        random = np.random.default_rng(0)
        self.share = random.uniform(0.2, 1.2, G)
        self.share /= self.share.sum()
        along = np.arange(N) // SIDE / SIDE
        codes = np.stack([1.4 * np.sin(7 * along), random.standard_normal(N)], axis=1)
        self.rate = self.share * np.exp(codes @ (0.6 * random.standard_normal((K, G))))
        self.counts = random.poisson(self.rate * depth * random.uniform(0.5, 1.5, (N, 1)))
        self.hidden = random.random((N, G)) < 0.2
        self.empty = random.random(N) < 0.1
        self.hidden[self.empty] = True
        depths = np.full(N, depth)
        self.view, self.tissue = tissue_of(self.counts, self.hidden, depths)

    def batch(self, codes):
        observed = torch.from_numpy(~self.hidden)
        unused = dict.fromkeys(Batch._fields)
        unused |= {
            "counts": torch.from_numpy(self.view.counts.toarray()),
            "observed": observed,
            "field": codes[:, None],
        }
        unused |= {"depth": torch.from_numpy(self.view.depth), "neighbor_mask": torch.ones(N, 4, dtype=torch.bool)}
        unused |= {"similar": torch.zeros(N, 0, 0), "neighbor_counts": torch.ones(N, 4, G)}
        unused |= {"image": torch.zeros(N, 1, 0), "image_mask": torch.zeros(N, 1, dtype=torch.bool)}
        # Of the neighbours alone, relative to the share of all spots.
        seen = [grid() @ part for part in (self.view.counts.toarray(), ~self.hidden * self.view.depth[:, None])]
        near = (seen[0] + 3 * self.share) / (seen[1] + 3)
        pooled = np.zeros((N, N_POOLS, G), dtype=np.float32)
        pooled[:, -1] = np.log(near / self.share)
        return Batch(**unused | {"pooled": torch.from_numpy(pooled)})


def laplacian():
    graph = grid()
    return np.diag(np.asarray(graph.sum(axis=1)).ravel()) - graph.toarray()


@pytest.fixture(scope="module")
def simulated():
    return Simulated()


def fitted(tissue, share, n_factors=4):
    torch.manual_seed(0)
    field = LatentField(G, n_factors)
    _field_fit.fit(field, tissue, torch.from_numpy(share).float(), 0)
    return field


@pytest.fixture(scope="module")
def share(simulated):
    return torch.from_numpy(simulated.share).float()


@pytest.fixture(scope="module")
def field(simulated):
    return fitted(simulated.tissue, simulated.share)


@pytest.fixture(scope="module")
def prediction(field, simulated, share):
    batch = simulated.batch(field.solve(simulated.tissue, share).codes)
    return field(batch, batch.observed, share)


def error(log_rate, simulated, entries):
    return ((log_rate.numpy() - np.log(simulated.rate))[entries] ** 2).mean()


def test_hidden_entries_and_hidden_spots_are_predicted(prediction, simulated):
    seen = ~simulated.empty[:, None]
    mean = torch.from_numpy(np.log(simulated.share)).expand(N, G)
    for entries, ratio in ((simulated.hidden & seen, 0.2), (simulated.hidden & ~seen, 0.75)):
        assert error(prediction.log_rate, simulated, entries) < ratio * error(mean, simulated, entries)


def test_the_smooth_factor_is_told_from_the_other(field):
    ratio = field.smoothness / field.stiffness
    assert ratio.min() < 0.1 and ratio.max() > 100


def test_what_is_left_out_does_not_matter(field, simulated, share):
    left_out = torch.arange(G) % 5 == 0
    counts, genes = simulated.counts.copy(), left_out.numpy()
    changed = (~simulated.hidden) & genes
    counts[changed] += 40
    depth = simulated.view.depth + np.where(changed, 40, 0).sum(axis=1).astype(np.float32)
    _, other = tissue_of(counts, simulated.hidden, depth)
    one, again = (field.solve(tissue, share, left_out).codes for tissue in (simulated.tissue, other))
    # The depth that is left differs by rounding only.
    torch.testing.assert_close(one, again, rtol=1e-3, atol=1e-3)
    assert (field.solve(simulated.tissue, share).codes - field.solve(other, share).codes).abs().max() > 0.1


def test_hidden_counts_do_not_matter(simulated, share):
    counts = np.where(simulated.hidden, 1000, simulated.counts)
    _, other = tissue_of(counts, simulated.hidden, simulated.view.depth)
    fits = [fitted(tissue, simulated.share) for tissue in (simulated.tissue, other)]
    for one, again in zip(fits[0].buffers(), fits[1].buffers(), strict=True):
        assert torch.equal(one, again)
    assert torch.equal(fits[0].solve(simulated.tissue, share).codes, fits[1].solve(other, share).codes)


def test_codes_have_converged(field, simulated, share, monkeypatch):
    codes = field.solve(simulated.tissue, share).codes
    monkeypatch.setattr(_field, "SOLVE_SWEEPS", 30)
    assert (field.solve(simulated.tissue, share).codes - codes).abs().max() < 0.02


def test_codes_of_distinct_cells_have_converged(monkeypatch):
    """Of genes that a few cells have a hundred times as much of, the first Newton step would go far too far, and the way back be long."""
    random = np.random.default_rng(0)
    share, kind = np.full(G, 1 / G), random.integers(0, 10, N)
    log_ratio = np.where(np.arange(G) % 10 == kind[:, None], 3.0, -2.0)
    hidden = np.zeros((N, G), dtype=bool)
    _, tissue = tissue_of(random.poisson(100 * share * np.exp(log_ratio)), hidden, np.full(N, 100.0))
    field = fitted(tissue, share, n_factors=10)
    share = torch.from_numpy(share).float()
    solved = field.solve(tissue, share)
    monkeypatch.setattr(_field, "SOLVE_SWEEPS", 40)
    exact = field.solve(tissue, share)
    away = (solved.codes - exact.codes) @ field.loadings.T
    assert away.square().mean().sqrt() < 0.05


def test_large_tissue_is_solved_in_strips(field, simulated, share, monkeypatch):
    whole, strips = (SimpleNamespace(**vars(simulated.view)) for _ in range(2))
    module = SimpleNamespace(field=field, share=share, device=CPU)
    _field_codes.solve_field(module, whole, folded=N)
    assert whole.field.shape == (N, 6, 4)
    np.testing.assert_allclose(whole.field[:, 0], field.solve(simulated.tissue, share).codes)
    monkeypatch.setattr(_field_codes, "STRIP_SPOTS", 200)
    monkeypatch.setattr(_field_codes, "HALO_SPOTS", 150)
    _field_codes.solve_field(module, strips)
    assert np.abs(strips.field[:, 0] - whole.field[:, 0]).max() < 0.05
    # Codes without a fold of the genes are solved in some strips.
    _field_codes.solve_field(module, strips, folded=400)
    assert np.isfinite(strips.field[:, 0]).all()
    known = np.isfinite(strips.field[:, 1:]).all(axis=(1, 2))
    assert 200 < known.sum() <= 400 < N
    assert np.abs(strips.field[known] - whole.field[known]).max() < 0.05
    assert np.isnan(strips.field[~known][:, 1:]).all()


def test_large_tissue_is_fitted_to_a_part(simulated, share, monkeypatch):
    monkeypatch.setattr(_field_codes, "FIT_ENTRIES", 200 * G)
    seen = []
    monkeypatch.setattr(_field_fit, "fit", lambda field, tissue, *_: seen.append(tissue))
    _field_codes.fit_field(SimpleNamespace(field=LatentField(G, 3), share=share, device=CPU), simulated.view, 0)
    [tissue] = seen
    # Of connected parts, where neighbours can tell of each other.
    assert 150 <= tissue.n_spots <= 200 and tissue.degree.mean() > 2


def test_some_genes_are_predicted_as_among_all(field, simulated, share):
    batch, genes = simulated.batch(field.solve(simulated.tissue, share).codes), torch.tensor([41, 0, 7])
    field.detection.normal_()
    some, whole = (field(batch, batch.observed, share, chosen) for chosen in (genes, None))
    torch.testing.assert_close(some.log_rate, whole.log_rate[:, genes])
    torch.testing.assert_close(some.detected, whole.detected[:, genes])
    assert torch.equal(some.weight, whole.weight)


def test_weight_beside_the_network(field, simulated, share):
    batch = simulated.batch(torch.zeros(N, 4))
    mixing = float(field.mixing)
    weight = field(batch, batch.observed, share).weight[:, 0]
    # The network has less to say of a spot with hundreds of counts than it has in the mean, and some of one with none.
    empty = torch.from_numpy(simulated.empty)
    torch.testing.assert_close(weight[empty], torch.full((int(empty.sum()),), 0.7))
    assert (weight[~empty] < mixing + 0.05).all() and (weight[~empty] > mixing).all()
    # With an image the network knows something; where nothing is seen anywhere the field knows nothing.
    imaged = batch._replace(image=torch.zeros(N, 1, 3), image_mask=torch.ones(N, 1, dtype=torch.bool))
    weight = field(imaged, imaged.observed, share).weight[:, 0]
    assert (weight[empty] == 0.5).all() and (weight[~empty] < mixing).all() and (weight[~empty] > mixing - 0.05).all()
    nowhere = batch._replace(pooled=torch.zeros(N, N_POOLS, G))
    assert (field(nowhere, nowhere.observed, share).weight[empty] == 0).all()


@pytest.mark.parametrize("n_seen", [0, 1, 4])
def test_unseen_spots_are_averaged_with_what_is_around_them(field, simulated, share, n_seen):
    batch = simulated.batch(field.solve(simulated.tissue, share).codes)
    neighbor_counts = torch.zeros(N, 4, G)
    neighbor_counts[:, :n_seen, 3] = 1
    batch = batch._replace(neighbor_counts=neighbor_counts)
    alone = field(batch._replace(pooled=torch.zeros(N, N_POOLS, G)), batch.observed, share).log_rate
    pooled = torch.randn(N, N_POOLS, G)
    found = field(batch._replace(pooled=pooled), batch.observed, share)
    empty = torch.from_numpy(simulated.empty)
    # The last of the log ratios is that of the nearest neighbours to those within two hops, and the network learnt with seen neighbours.
    seen, within_two = n_seen / 4, share.log() + pooled[:, :-1].sum(dim=1)
    codes, local = batch.field[:, 0], field.given_neighbours(batch, batch.observed, share)
    linear, variance = field.moments(codes, local)
    own, around = field.level + linear + variance / 2, within_two + seen * pooled[:, -1]
    expected = ((0.7 - 0.3 * seen) * own + 0.3 * around) / (1 - 0.3 * seen)
    torch.testing.assert_close(found.log_rate[empty], expected[empty])
    torch.testing.assert_close(found.weight[empty], torch.full((int(empty.sum()), 1), 1 - 0.3 * seen))
    assert (found.log_rate - alone)[~empty].abs().max() < 0.1 * (found.log_rate - alone)[empty].abs().max()


def test_huge_counts_stay_finite(simulated, share):
    counts = simulated.counts.copy()
    counts[0, 0] = counts[1] = 1_000_000
    hidden = np.zeros_like(simulated.hidden)
    view, tissue = tissue_of(counts, hidden)
    field = fitted(tissue, simulated.share)
    batch = simulated.batch(field.solve(tissue, share).codes)
    batch = batch._replace(counts=torch.from_numpy(view.counts.toarray()), observed=torch.ones(N, G, dtype=torch.bool))
    prediction = field(batch._replace(depth=torch.from_numpy(view.depth)), batch.observed, share)
    assert all(part.isfinite().all() for part in (*prediction, *field.buffers()))


@pytest.mark.parametrize("n_spots", [1, 3])
def test_fewer_spots_than_factors(simulated, n_spots):
    tissue = Tissue(simulated.view, np.arange(n_spots), CPU)
    field = fitted(tissue, simulated.share, n_factors=5)
    assert all(part.isfinite().all() for part in field.buffers())


def test_overdispersion_is_learnt(simulated):
    random = np.random.default_rng(1)
    mean = simulated.share * 2000 * np.ones((N, 1))
    size = np.where(np.arange(G) < G // 2, 1.0, 1000.0)
    counts = random.poisson(mean * random.gamma(size, 1 / size, (N, G)))
    _, tissue = tissue_of(counts, np.zeros((N, G), dtype=bool), np.full(N, 2000.0))
    found = fitted(tissue, simulated.share).size
    # A little of the noise is taken for factors.
    assert found[: G // 2].max() < 2.5 and found[G // 2 :].min() > 20


def test_detected_values_are_regressed_without_bias(field, simulated, share):
    batch = simulated.batch(field.solve(simulated.tissue, share).codes)
    field.fit_detection([(field(batch, batch.observed, share).log_rate, batch)])
    truth = log_normalise(torch.from_numpy(simulated.counts).float(), batch.depth)
    off = field(batch, batch.observed, share).detected - truth
    detected = torch.from_numpy(simulated.counts > 0)
    for entries in (batch.observed, ~batch.observed & ~torch.from_numpy(simulated.empty)[:, None]):
        assert abs(off[entries & detected].mean()) < 0.05


@pytest.fixture(scope="module")
def precision(simulated):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(N, 3, 3, generator=generator)
    strengths = torch.tensor([0.5, 0.1, 2.0]), torch.tensor([0.1, 3.0, 1.0])
    found = Precision(root @ root.mT, simulated.tissue, *strengths)
    whole = torch.zeros(N, 3, N, 3, dtype=torch.float64)
    spots = torch.arange(N)
    whole[spots, :, spots] = (root @ root.mT).double() + torch.diag(strengths[0]).double()
    for factor, smoothness in enumerate(strengths[1].tolist()):
        whole[:, factor, :, factor] += smoothness * torch.from_numpy(laplacian())
    return found, whole.view(3 * N, 3 * N)


def test_precision_is_solved_for(precision):
    found, whole = precision
    target = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
    solved = torch.linalg.solve(whole, target.double().flatten()).view(N, 3).float()
    torch.testing.assert_close(found.solve(target, torch.zeros(N, 3)), solved, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close((found @ solved), target, rtol=1e-3, atol=1e-3)


def test_draws_have_the_covariance(precision, simulated):
    found, whole = precision
    exact = torch.linalg.inv(whole).float()
    draws = torch.stack([found.sample(noise_of(simulated.tissue, 3, 0, n)).flatten() for n in range(300)])
    covariance = draws.T @ draws / len(draws)
    # Each entry varies by its own; the mean over spots does not.
    of_spots, expected = (matrix.view(N, 3, N, 3) for matrix in (covariance, exact))
    one, other = torch.arange(N), torch.arange(N).roll(-1)
    for first, second in ((one, one), (one, other)):
        seen, known = (m[first, :, second].mean(0) for m in (of_spots, expected))
        torch.testing.assert_close(seen, known, rtol=0.1, atol=0.01)
    # The covariance of each spot from few draws, and that given its neighbours.
    spread = found.spread(draws[:16].view(16, N, 3).transpose(0, 1))
    local = found.local_covariance
    around = (local + local @ (spread[..., None] * local) - local).diagonal(dim1=1, dim2=2).mean(0)
    expected = torch.diagonal(exact).view(N, 3).mean(0) - local.diagonal(dim1=1, dim2=2).mean(0)
    assert float(around.sum() / expected.sum()) == pytest.approx(1, abs=0.15)


def test_noise_belongs_to_spots_and_edges(simulated):
    """So that parts of a tissue that overlap are drawn alike where they do."""
    rows = np.arange(3 * SIDE, 9 * SIDE)
    part = Tissue(simulated.view, rows, CPU)
    whole, some = (noise_of(tissue, 3, 5, 1) for tissue in (simulated.tissue, part))
    assert torch.equal(whole.own[rows], some.own) and torch.equal(whole.spots[rows], some.spots)
    edges = {tuple(edge): noise for edge, noise in zip(simulated.tissue.edges, whole.edges.tolist(), strict=True)}
    assert [edges[tuple(rows[edge])] for edge in part.edges] == some.edges.tolist()
    for different in (noise_of(part, 3, 6, 1), noise_of(part, 3, 5, 2)):
        assert not torch.isin(different.own, some.own).any()
    numbers = torch.cat([part.flatten() for n in range(20) for part in noise_of(simulated.tissue, 3, 0, n)]).numpy()
    assert stats.kstest(numbers, "norm").pvalue > 0.01
    assert abs(np.corrcoef(whole.own.numpy(), whole.spots.numpy(), rowvar=False) - np.eye(6)).max() < 0.2


def test_spectrum_of_the_graph(simulated, monkeypatch):
    exact = np.linalg.eigvalsh(laplacian())
    for most in (N, N - 1):
        monkeypatch.setattr(_markov, "_EXACT_SPOTS", most)
        nodes, weights = _markov.spectrum(simulated.tissue.laplacian)
        for ratio in (0.01, 1.0, 100.0):
            found = float((weights * (1 + ratio * nodes).log()).sum())
            assert found == pytest.approx(np.log(1 + ratio * exact).sum(), rel=0.02)
