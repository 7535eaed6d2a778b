"""What is hidden reaches no output bit; what training holds out reaches no weight; an entry does not predict itself."""

import numpy as np
import pytest
import torch
from scipy import sparse

from lgdist_scvi.data import _batch, _view
from lgdist_scvi.module import _posterior
from lgdist_scvi.module._conditions import Neighborhood
from lgdist_scvi.module._field_codes import solve_field
from lgdist_scvi.module._posterior import draw_noise, predict
from lgdist_scvi.train._plans import PhasePlan

SETUP = {"library_key": "library_id", "image_key": "X_image", "observed_layer": "observed"}
FORMATS = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
VALUES = {"large": 5000, "zero": 0, "NaN": np.nan}


def hidden_entries(kind, shape):
    rng = np.random.default_rng(3)
    hidden = np.zeros(shape, dtype=bool)
    if kind == "entries":
        hidden |= rng.random(shape) < 0.2
    elif kind == "genes":
        hidden[:, [0, 7, 23]] = True
    elif kind == "spots":
        hidden[rng.choice(shape[0], 8, replace=False)] = True
        hidden |= rng.random(shape) < 0.05
    return hidden


def hidden_tissue(small, kind):
    adata = small.tissue(n_spots=120, n_libraries=2)
    hidden = hidden_entries(kind, adata.shape)
    if kind != "genes":
        # Every gene keeps a count.
        hidden[0] = False
        counts = adata.layers["counts"].toarray()
        counts[0] += 1
        adata.layers["counts"] = sparse.csr_matrix(counts)
    adata.layers["observed"] = ~hidden
    adata.obs["total"] = np.asarray(adata.layers["counts"].sum(axis=1)).ravel() + 500
    return adata, hidden


def with_values(adata, hidden, value, to_format):
    changed = adata.copy()
    counts = adata.layers["counts"].toarray()
    counts[hidden] = value
    changed.layers["counts"] = to_format(counts)
    changed.X = changed.layers["counts"].copy()
    return changed


def main_outputs(small, adata, **setup):
    """A model trained on `adata`, its completed values and its codes."""
    model = small.fit(small.build(adata, **(SETUP | setup)))
    completed = model.get_completed_expression(return_numpy=True, **small.READ)
    return model, {"completed": completed, "code": model.get_latent_representation(kind="code")}


def all_outputs(small, adata, **setup):
    """Everything that a user can read from a model trained on `adata`, and its weights."""
    model, outputs = main_outputs(small, adata, **setup)
    for keep in (True, False):
        both = model.get_completed_expression(keep_observed=keep, return_std=True, return_numpy=True, **small.READ)
        outputs[f"completed, keep={keep}"], outputs[f"std, keep={keep}"] = both
        outputs[f"detected, keep={keep}"] = model.get_completed_expression(
            keep_observed=keep, read_out="detected", return_numpy=True, **small.READ
        )
    outputs["counts"] = model.get_completed_expression(scale="counts", return_numpy=True, **small.READ)
    outputs["samples"] = model.sample_expression(n_samples=3, silent=True)
    regions = model.get_region_expression(n_spots=5, silent=True)
    outputs |= {f"regions {name}": values for name, values in {"mean": regions.X, **regions.layers}.items()}
    table = model.differential_expression(idx1=range(20), idx2=range(40, 60), silent=True)
    outputs["tests"] = table.select_dtypes("number").loc[adata.var_names].to_numpy()
    outputs |= {kind: model.get_latent_representation(kind=kind) for kind in ("state", "niche")}
    outputs["scores"] = model.evaluate_completion(**small.READ).to_numpy(dtype=np.float64)
    for phase, metrics in model.history.items():
        outputs |= {f"{phase} {name}": table.to_numpy() for name, table in metrics.items()}
    outputs |= {name: tensor.numpy() for name, tensor in model.module.state_dict().items()}
    return outputs


def differing(first, second):
    assert first.keys() == second.keys()
    return [name for name in first if first[name].tobytes() != second[name].tobytes()]


def all_batches(small, adata, **setup):
    """Everything that reaches the model, in training and afterwards, and what the held-out entries are drawn from."""
    model = small.build(adata, **(SETUP | setup))
    data = model._training_data(0.1, 64)
    arrays = {"held out": data.held_out.toarray()}
    for name, view in {"training": data.view, "truth": data.truth, "read": model._view()}.items():
        arrays |= {f"{name} all counts": view.counts.toarray(), f"{name} hidden": view.hidden[np.arange(adata.n_obs)]}
        arrays |= {f"{name} share": view.share, f"{name} all depths": view.depth}
        batch = view.gather(np.arange(adata.n_obs))._asdict()
        arrays |= {f"{name} {field}": tensor.numpy() for field, tensor in batch.items()}
    return arrays


DEPTHS = {"size_factor_key": "total", "batch_key": "domain"}


@pytest.mark.parametrize("setup", [{}, DEPTHS], ids=["", "depths"])
@pytest.mark.parametrize("to_format", FORMATS)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("kind", ["entries", "genes", "spots"])
def test_hidden_counts_reach_no_batch(small, kind, value, to_format, setup):
    adata, hidden = hidden_tissue(small, kind)
    before = all_batches(small, adata, **setup)
    after = all_batches(small, with_values(adata, hidden, VALUES[value], FORMATS[to_format]), **setup)
    assert differing(before, after) == []


@pytest.mark.parametrize(
    ("kind", "value", "to_format", "setup"),
    [("entries", "large", "csr", DEPTHS), ("genes", "zero", "csc", {}), ("spots", "NaN", "dense", {})],
)
def test_hidden_counts_change_no_output_bit(small, kind, value, to_format, setup):
    adata, hidden = hidden_tissue(small, kind)
    changed = with_values(adata, hidden, VALUES[value], FORMATS[to_format])
    outputs = all_outputs(small, changed, **setup)
    assert differing(all_outputs(small, adata, **setup), outputs) == []
    assert all(
        np.isfinite(outputs[name]).all() for name in ("completed, keep=True", "std, keep=False", "code", "state")
    )
    # Hidden entries of spots that are neighbours of others are among them.
    neighbors = changed.obsp["lgdist_connectivities"].sum(axis=0)
    assert (np.asarray(neighbors).ravel()[hidden.any(axis=1)] > 0).all()


def ignore_mask_of_counts(monkeypatch):
    read = _view.observed_entries
    monkeypatch.setattr(_view, "observed_entries", lambda counts, observed: read(counts, None))


def ignore_mask_in_encoder(monkeypatch):
    ignore_mask_of_counts(monkeypatch)
    monkeypatch.setattr(Neighborhood, "visible", lambda self, batch: torch.ones_like(batch.observed))


def ignore_mask_altogether(monkeypatch):
    monkeypatch.setattr(_view, "observed_matrix", lambda adata, layer: None)


@pytest.mark.parametrize("break_it", [ignore_mask_of_counts, ignore_mask_in_encoder, ignore_mask_altogether])
def test_the_test_sees_a_dropped_mask(small, monkeypatch, break_it):
    adata, hidden = hidden_tissue(small, "entries")
    break_it(monkeypatch)
    other = with_values(adata, hidden, VALUES["large"], FORMATS["csr"])
    assert {"training counts", "truth counts", "read counts"} <= set(
        differing(*(all_batches(small, a) for a in (adata, other)))
    )
    before, after = (main_outputs(small, a)[1] for a in (adata, other))
    assert differing(before, after) == ["completed", "code"]
    assert (before["completed"] != after["completed"])[hidden].mean() > 0.9


def held_out_changed(small, *, setup=None):
    """A tissue, the same with other counts at the entries that training holds out, and those entries."""
    adata, hidden = hidden_tissue(small, "spots")
    setup = {"observed_layer": "observed", "library_key": "library_id", **(setup or {})}
    held_out = small.build(adata.copy(), **setup)._training_data(0.1, 64).held_out.toarray()
    assert held_out.any() and not (held_out & hidden).any()
    changed = adata.copy()
    counts = adata.layers["counts"].toarray()
    # A size factor counts what it measures: it changes with the counts.
    new = np.where(held_out, counts + np.random.default_rng(5).integers(1, 60, counts.shape), counts)
    changed.obs["total"] += (new - counts).sum(axis=1)
    changed.layers["counts"] = sparse.csr_matrix(new)
    return adata, changed, setup


@pytest.mark.parametrize("setup", [{}, {"size_factor_key": "total", "batch_key": "domain"}])
def test_held_out_counts_do_not_reach_the_view(small, setup):
    adata, changed, setup = held_out_changed(small, setup=setup)
    first, second = (small.build(a, **setup)._training_data(0.1, 64) for a in (adata, changed))
    assert (first.held_out != second.held_out).nnz == 0
    assert (first.truth.counts != second.truth.counts).nnz > 0
    assert (first.view.counts != second.view.counts).nnz == 0
    np.testing.assert_array_equal(first.view.share, second.view.share)
    everything = np.arange(adata.n_obs)
    for name, one, other in zip(
        _batch.Batch._fields, first.view.gather(everything), second.view.gather(everything), strict=True
    ):
        assert torch.equal(one, other), name
    rows = np.flatnonzero(np.diff(first.held_out.indptr))
    assert not first.view.gather(rows).observed[torch.from_numpy(first.held_out[rows].toarray())].any()


def test_held_out_counts_change_no_weight(small, monkeypatch):
    # Which step's weights are kept is chosen on the held-out entries, so keep the last.
    monkeypatch.setattr(PhasePlan, "keep_best", lambda self: self._put(self._averaged) or True)
    adata, changed, setup = held_out_changed(small)
    first, second = (
        small.fit(small.build(a, **setup), validation_size=0.1, early_stopping=False) for a in (adata, changed)
    )
    # Calibrations included: they are fitted to other entries than those that are scored.
    weights = second.module.state_dict()
    differ = {name for name, value in first.module.state_dict().items() if not torch.equal(value, weights[name])}
    assert differ == set()
    one, other = (model.get_held_out_entries(**small.READ) for model in (first, second))
    assert not one["count"].equals(other["count"])
    for name in ("depth", "expected", "std", "detected"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for phase in ("autoencoder", "diffusion"):
        one, other = first.history[phase], second.history[phase]
        for name in (name for name in one if "train" in name):
            assert one[name].equals(other[name]), name
    assert not first.history["autoencoder"]["validation_loss"].equals(second.history["autoencoder"]["validation_loss"])


def test_calibration_is_on_entries_that_are_neither_trained_on_nor_scored(small):
    adata, hidden = hidden_tissue(small, "entries")
    model = small.build(adata, observed_layer="observed", library_key="library_id")
    data = model._training_data(0.1, 64)
    calibrated = data.for_calibration().held_out.toarray()
    assert 0 < calibrated.sum() < data.held_out.nnz
    assert not (calibrated & (data.held_out.toarray() | hidden)).any()
    assert (data.view.hidden[np.arange(adata.n_obs)] == (calibrated | data.held_out.toarray() | hidden)).all()
    # It reaches what it is to: other counts there change the calibration.
    small.fit(model)
    changed = adata.copy()
    counts = adata.layers["counts"].toarray()
    changed.layers["counts"] = sparse.csr_matrix(np.where(calibrated, counts + 20, counts))
    other = small.fit(small.build(changed, observed_layer="observed", library_key="library_id"))
    assert torch.equal(model.module.encoder.code.weight, other.module.encoder.code.weight)
    assert not torch.equal(model.module.detected_calibration, other.module.detected_calibration)


@pytest.mark.parametrize("setup", [{}, {"size_factor_key": "total"}])
def test_a_count_does_not_predict_itself(small, setup):
    adata, hidden = hidden_tissue(small, "entries")
    setup = {"observed_layer": "observed", "library_key": "library_id", **setup}
    model = small.fit(small.build(adata, **setup), max_epochs=5)
    noise = draw_noise(2, small.OPTIONS["n_latent"], 0)
    view = model._view(share=model.module.share.numpy())
    solve_field(model.module, view)
    before = predict(model.module, view.gather(np.arange(adata.n_obs)), noise, 2)
    rng = np.random.default_rng(0)
    counts = adata.layers["counts"].toarray()
    influence = []
    for spot in rng.choice(adata.n_obs, 6, replace=False):
        gene = rng.choice(np.flatnonzero(~hidden[spot]))
        changed = adata.copy()
        more = counts.copy()
        more[spot, gene] += 40
        changed.layers["counts"] = sparse.csr_matrix(more)
        changed.obs.loc[changed.obs_names[spot], "total"] += 40
        _, view = model._trained_view(changed, diffusion=True)
        solve_field(model.module, view)
        after = predict(model.module, view.gather([spot]), noise, 2)
        old, new = before.network[spot].numpy(), after.network[0].numpy()
        np.testing.assert_allclose(new[gene], old[gene], rtol=2e-5)
        influence.append(np.abs(new / old - 1).max())
    # The count matters to the other genes of the spot, so the model was not blind to it.
    assert min(influence) > 1e-3


def test_what_a_prediction_knows_of_the_own_count(small):
    """Of a visible entry the field's rate alone knows it, beside the depth; of a hidden one nothing does."""
    adata, hidden = hidden_tissue(small, "entries")
    adata.obs["total"] += 1e6  # to which a count makes no difference
    model = small.fit(small.build(adata, **SETUP, size_factor_key="total"), max_epochs=5)
    for gene in (int(np.flatnonzero(~hidden[4])[0]), int(np.flatnonzero(hidden[4])[0])):
        changed = adata.copy()
        more = adata.layers["counts"].toarray()
        more[4, gene] += 400
        changed.layers["counts"] = sparse.csr_matrix(more)
        changed.obs.loc[changed.obs_names[4], "total"] += 400
        predictions = []
        for each in (adata, changed):
            _, view = model._trained_view(each, diffusion=True)
            solve_field(model.module, view, folded=view.n_spots)
            predictions.append(
                predict(model.module, view.gather([4], folds=True), draw_noise(2, 8, 0), 2, detected=True)
            )
        one, other = predictions
        knows = {
            name
            for name in ("network", "log_variance", "field", "detected", "rate")
            if abs(getattr(other, name)[0, gene] / getattr(one, name)[0, gene] - 1) > 2e-3
        }
        assert knows == (set() if hidden[4, gene] else {"field", "rate"})


def test_fold_that_does_not_leave_out_is_seen(small, monkeypatch):
    """The check above would fail if a fold kept its own genes visible."""
    adata, hidden = hidden_tissue(small, "entries")
    model = small.fit(small.build(adata, observed_layer="observed", library_key="library_id"), max_epochs=5)
    view = model._view(share=model.module.share.numpy())
    solve_field(model.module, view)
    batch = view.gather([4])
    gene = int(np.flatnonzero(~hidden[4])[0])
    more = batch._replace(counts=batch.counts.clone(), depth=batch.depth + 400)
    more.counts[0, gene] += 400
    honest = [predict(model.module, b, None, 1).network[0, gene] for b in (batch, more)]
    torch.testing.assert_close(*honest, rtol=2e-5, atol=0)
    passes = _posterior.passes

    def seeing(visible, genes, *, observed):
        found = passes(visible, genes, observed=observed)
        return [part._replace(left_out=torch.zeros_like(part.left_out)) for part in found]

    monkeypatch.setattr(_posterior, "passes", seeing)
    leaking = [predict(model.module, b, None, 1).network[0, gene] for b in (batch, more)]
    assert abs(leaking[1] / leaking[0] - 1) > 1e-3
