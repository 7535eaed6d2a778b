"""Data that went wrong at random: refused by a check of ours, or completed; never anything in between.

The inputs are the same in every run. ``LGDIST_FUZZ=2000 pytest tests/model/test_fuzz.py`` tries as many others, new ones
each time, and `make test-all` a few hundred; what they find becomes an ``@example``. Other kinds of input are tried by
``tests/test_fuzz.py``.
"""

import os

import numpy as np
import pytest
from fuzzing.anndata import CHANGES, ODD_NUMBERS, PLACES, SETUP, change, tissue, used
from fuzzing.judge import judged
from hypothesis import example, given, settings
from hypothesis import strategies as st


@settings(max_examples=int(os.environ.get("LGDIST_FUZZ") or 30))
@given(
    seed=st.integers(0, 2**32 - 1),
    changes=st.lists(
        st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from(PLACES), st.sampled_from(ODD_NUMBERS)),
        min_size=1,
        max_size=3,
    ),
    used_keys=st.sets(st.sampled_from(sorted(SETUP))),
    n_neighbors=st.sampled_from([1, 6, 19, 20, 39]),
)
# Names of sections that cannot be sorted, one of them infinite.
@example(
    seed=23, changes=[("odd_entries", "obs library", np.inf)], used_keys={"library_key", "batch_key"}, n_neighbors=1
)
# Fingerprints of spots beyond 63 bits.
@example(seed=0, changes=[("emptied", "X", 1e9)], used_keys=set(), n_neighbors=1)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_refused_or_completed(seed, changes, used_keys, n_neighbors):
    rng = np.random.default_rng(seed)
    adata = tissue(rng)
    change(adata, rng, changes)
    outcome, why = judged(lambda: used(adata, {name: SETUP[name] for name in used_keys}, n_neighbors))
    assert outcome in ("refused", "warned", "used"), why
