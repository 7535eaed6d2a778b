"""What similar spots add to the latent field: what is not linear, nothing where the field is right, and nothing hidden."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

from lgdist_scvi.data._hidden import Hidden
from lgdist_scvi.data._neighbors import spatial_graph
from lgdist_scvi.data._view import SpotView
from lgdist_scvi.module import _field_codes, _similarity
from lgdist_scvi.module._field import LatentField
from lgdist_scvi.module._field_codes import fit_field, solve_field
from lgdist_scvi.module._similarity import fit_similarity
from lgdist_scvi.train._calibration import _fit_gain

N, G, ODD = 1200, 60, 7
CPU = torch.device("cpu")


class Simulated:
    """One factor, to which the log rates are proportional but for one gene, which has it in the middle alone."""

    def __init__(self, bent=True):
        random = np.random.default_rng(0)
        code = random.standard_normal(N)
        loading = 0.6 * random.standard_normal(G)
        log_rate = code[:, None] * loading
        if bent:
            log_rate[:, ODD] = np.where(np.abs(code) < 0.5, 1.5, -1.0)
        rate = np.exp(log_rate)
        share = random.uniform(0.3, 1, G)
        self.rate = share / share.sum() * rate
        depth = random.uniform(300, 900, (N, 1))
        self.counts = random.poisson(self.rate * depth).astype(np.float32)
        self.depth = depth.ravel()
        self.hidden = random.random((N, G)) < 0.1
        self.position = random.uniform(0, 1, (N, 2))

    def view(self, counts=None, depth=None):
        depth = self.depth if depth is None else depth
        counts = np.where(self.hidden, 0, self.counts if counts is None else counts)
        graph = spatial_graph(self.position, None, 6)
        hidden, section = Hidden.unobserved(sparse.csr_matrix(~self.hidden)), np.zeros(N, dtype=int)
        image = np.zeros((N, 0), dtype=np.float32)
        return SpotView(sparse.csr_matrix(counts), hidden, depth, section, np.arange(N) % 2, *graph, 6, image)

    def module(self, view):
        torch.manual_seed(0)
        module = SimpleNamespace(field=LatentField(G, 2), share=torch.from_numpy(view.share).float(), device=CPU)
        fit_field(module, view, 0)
        solve_field(module, view, folded=view.n_spots)
        return module


@pytest.fixture(scope="module")
def simulated():
    return Simulated()


@pytest.fixture(scope="module")
def work(simulated):
    view = simulated.view()
    module = simulated.module(view)
    fit_similarity(module.field, view.similar, np.arange(0, N, 2))
    return module, view


def errors(module, view, simulated, part=0):
    """Mean squared error of the log rates of every gene at its hidden entries."""
    batch = view.gather(np.arange(N), folds=part > 0)
    log_rate = module.field(batch, batch.observed, module.share, part=part).log_rate.numpy()
    square = (log_rate - np.log(simulated.rate)) ** 2
    return np.array([square[simulated.hidden[:, gene], gene].mean() for gene in range(G)])


def test_what_is_not_linear_is_found_at_hidden_entries(work, simulated):
    module, view = work
    with_similar = errors(module, view, simulated)
    plain = simulated.view()
    solve_field(module, plain)
    plain.similar = None
    without = errors(module, plain, simulated)
    assert with_similar[ODD] < 0.5 * without[ODD]
    others = np.arange(G) != ODD
    assert with_similar[others].mean() < without[others].mean() + 0.01
    # The read-out of what is visible leaves out the own count, and has it as well.
    fold = 1 + next(one.part for one in view.similar._kinds[1][1] if ODD in one.genes)
    assert errors(module, view, simulated, fold)[ODD] < 0.6 * without[ODD]


def test_genes_that_differ_more_are_shrunk_less(work):
    strength = work[0].field.similarity
    others = torch.arange(G) != ODD
    assert (strength[1, ODD] < 0.1 * strength[1, others].median()) and (strength > 0).all()


def test_a_field_that_is_right_stays_as_it_is():
    simulated = Simulated(bent=False)
    view = simulated.view()
    module = simulated.module(view)
    fit_similarity(module.field, view.similar, np.arange(N))
    assert np.abs(view.similar.of(np.arange(N), folds=False)[:, 0]).mean() < 0.08


def test_totals_are_those_counted(simulated):
    """Also of a gene that similar spots raise where it is high."""
    view = simulated.view()
    module = simulated.module(view)
    module.condition = SimpleNamespace(visible=lambda batch: batch.observed)
    fit_similarity(module.field, view.similar, np.arange(0, N, 2))

    def off():
        batch = view.gather(np.arange(N))
        rate = module.field(batch, batch.observed, module.share).log_rate.exp() * batch.depth[:, None]
        return ((rate * batch.observed).sum(0) / batch.counts.sum(0)).log().abs()

    given = module, SimpleNamespace(view=view), view.similar, np.arange(N)
    assert off().max() > 0.005
    _fit_gain(*given)
    assert off().max() < 0.002
    gain = module.field.gain.clone()
    _fit_gain(*given)  # from where it is
    torch.testing.assert_close(module.field.gain, gain)


def test_hidden_counts_do_not_matter(work, simulated):
    other = simulated.view(np.where(simulated.hidden, 500, simulated.counts))
    module = simulated.module(other)
    fit_similarity(module.field, other.similar, np.arange(0, N, 2))
    assert torch.equal(module.field.similarity, work[0].field.similarity)
    np.testing.assert_array_equal(
        *(view.similar.of(np.arange(N), folds=True) for view in (other, work[1])),
    )


def test_the_own_count_of_a_visible_entry_does_not_matter(work, simulated):
    """In the predictions from which its fold of the genes is left out."""
    module, view = work
    spot = int(np.flatnonzero(~simulated.hidden[:, ODD])[0])
    counts, depth = simulated.counts.copy(), simulated.depth.copy()
    counts[spot, ODD] += 50
    depth[spot] += 50
    other = simulated.view(counts, depth)
    solve_field(module, other, folded=other.n_spots)
    fold = 1 + next(one.part for one in view.similar._kinds[1][1] if ODD in one.genes)
    left_out = torch.isin(torch.arange(G), view.similar._kinds[1][1][fold - 1].genes)
    batches = [some.gather([spot], folds=True) for some in (view, other)]
    before, after = (
        float(module.field(batch, batch.observed & ~left_out, module.share, part=fold).log_rate[0, ODD])
        for batch in batches
    )
    assert after == pytest.approx(before, abs=1e-3)
    assert (
        np.abs(np.subtract(*(some.similar.of(np.arange(N), folds=True)[:, 1, ODD] for some in (view, other)))).max()
        > 0.01
    )


def test_large_tissue_is_compared_with_some_of_its_spots(work, monkeypatch, simulated):
    module, _ = work
    monkeypatch.setattr(_similarity, "REFERENCE_ENTRIES", 500 * G)
    view = simulated.view()
    solve_field(module, view)
    [comparison] = view.similar._kinds[0][1]
    assert comparison.counted.shape == (501, G) and not comparison.counted[-1].any()
    with_similar = errors(module, view, simulated)
    view.similar = None
    assert with_similar[ODD] < 0.6 * errors(module, view, simulated)[ODD]


def test_codes_of_some_strips_are_compared_among_themselves(work, monkeypatch, simulated):
    module, whole = work
    monkeypatch.setattr(_field_codes, "STRIP_SPOTS", 300)
    monkeypatch.setattr(_field_codes, "HALO_SPOTS", 150)
    view = simulated.view()
    solve_field(module, view, folded=500)
    known = np.flatnonzero(np.isfinite(view.field[:, 1, 0]))
    assert len(known) < N
    for kind, rows in enumerate((np.arange(N), known)):
        space, comparisons = view.similar._kinds[kind]
        np.testing.assert_array_equal(space._reference, rows)
        assert all(len(one.counted) == len(rows) + 1 for one in comparisons)
    # Neighbours without codes do not count.
    ratios = view.similar.of(known, folds=True)
    assert np.isfinite(ratios).all()
    of_all = whole.similar.of(known, folds=True)
    for kind in (0, 1):
        assert np.corrcoef(ratios[:, kind, ODD], of_all[:, kind, ODD])[0, 1] > 0.8


def test_nothing_counted_is_compared_with_nothing(work, simulated):
    module, _ = work
    view = simulated.view()
    empty = SpotView(
        sparse.csr_matrix((N, G), dtype=np.float32), Hidden.all((N, G)), np.ones(N), view.section, view.half,
        view.graph, None, 6, np.zeros((N, 0), dtype=np.float32), share=view.share,
    )  # fmt: skip
    solve_field(module, empty)
    assert empty.similar is None and empty.gather([0, 1]).similar.shape == (2, 0, 0)
