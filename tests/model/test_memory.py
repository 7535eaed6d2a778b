"""What does not fit in memory is refused before it is computed."""

import subprocess
import sys

import psutil
import pytest

from lgdist_scvi import _memory


def test_refusal_names_size_and_remedy(monkeypatch):
    monkeypatch.setattr(_memory, "available_memory", lambda: 4 * 10**9)
    _memory.require_memory(2 * 10**9, "The result", "Do without.")
    with pytest.raises(MemoryError, match=r"The result would take 2\.1 GB, and 4\.0 GB .* Do without\."):
        _memory.require_memory(2_100_000_000, "The result", "Do without.")


def test_read_outs_are_refused(small, monkeypatch):
    model = small.fit(small.build(small.tissue()))
    read = small.READ | {"n_samples": 0}
    n_entries = model.adata.n_obs * model.adata.n_vars
    monkeypatch.setattr(_memory, "available_memory", lambda: 2 * 4 * n_entries)
    model.get_completed_expression(**read)
    with pytest.raises(MemoryError, match=r"of 150 spots and 40 genes .*`gene_list`.*write_completed\(\)"):
        model.get_completed_expression(return_std=True, **read)
    model.get_completed_expression(indices=range(20), return_std=True, **read)
    with pytest.raises(MemoryError, match=r"completed layers .*write_completed\(\)"):
        model.add_completed_layer(**read)
    assert "lgdist" not in model.adata.layers
    monkeypatch.setattr(_memory, "available_memory", lambda: 2 * 12 * n_entries)
    with pytest.raises(MemoryError, match=r"3 quantiles of 6000 counts .*`indices`"):
        model.get_count_quantiles(**read)
    model.get_count_quantiles(quantiles=[0.5], **read)


def test_available_memory_knows_limits(tmp_path, monkeypatch):
    machine = psutil.virtual_memory().available
    assert 0 < _memory.available_memory() <= 1.2 * machine
    limit, used = tmp_path / "limit", tmp_path / "used"
    limit.write_text("5000\n")
    used.write_text("2000\n")
    monkeypatch.setattr(_memory, "_LIMITS", ((limit, used),))
    assert _memory.available_memory() == 3000
    limit.write_text("max\n")
    assert _memory.available_memory() > 3000


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process")
def test_available_memory_knows_the_limit_of_the_process():
    script = (
        "import importlib.util, resource, sys\n"
        "spec = importlib.util.spec_from_file_location('memory', sys.argv[1])\n"
        "memory = importlib.util.module_from_spec(spec); spec.loader.exec_module(memory)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, resource.RLIM_INFINITY))\n"
        "print(memory.available_memory())"
    )
    run = subprocess.run([sys.executable, "-c", script, _memory.__file__], capture_output=True, check=True)
    assert 0.5 * 2**30 < int(run.stdout) < 2**30
