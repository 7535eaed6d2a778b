"""What is compared: sets of sections, methods, and the cases that a method is run on."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "lgdist"
# The methods that answer the question of each protocol; the gene means give the scale.
_BOTH = "median magic scvi resolvi stark nest stagate graphst spackle"
PEERS = {
    "A": tuple(f"ridge_nz knn_mix_nz svd_nz laplacian_nz knn18_nz knn6_nz depth_nz gene_mean_nz {_BOTH}".split()),
    "B": tuple(f"spatial_factors_eb knn_eb ridge_eb knn_mix svd laplacian knn18 gene_mean {_BOTH}".split()),
}
SCORES = {"A": "mse", "B": "d2"}
_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Sections:
    """Sections that are scored together.

    Parameters
    ----------
    title
        Name for readers.
    files
        Files below ``data/``.
    seeds
        Seeds of what is hidden.
    arguments
        Arguments of the harness, where its defaults do not fit.
    protocols
        Protocols that the sections are scored under.
    """

    title: str
    files: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    arguments: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("A", "B")

    @property
    def options(self) -> dict[str, float]:
        """The arguments of the harness as those of its functions."""
        names = (name.removeprefix("--").replace("-", "_") for name in self.arguments[::2])
        return {name: float(value) for name, value in zip(names, self.arguments[1::2], strict=True)}


def _files(pattern: str, *sections: int) -> tuple[str, ...]:
    return tuple(pattern.format(section) for section in sections)


def _sparse(title: str, file: str, min_umi: int, min_det: float) -> Sections:
    """A section of its own, with the least depth of a spot and the least share of spots with a gene."""
    thresholds = ("--min-umi", str(min_umi), "--min-det", str(min_det))
    return Sections(title, (f"sparse/mouse_{file}.h5ad",), _SEEDS, thresholds)


def _thinned(sections: Sections, percent: int) -> Sections:
    """The same sections with few of their molecules; the others are held out."""
    title = f"{sections.title}, {percent}% of its molecules"
    return Sections(title, sections.files, _SEEDS, ("--frac", str(percent / 100)), ("B",))


_CORTEX = "dlpfc_visium_{}.h5ad"
_HIPPO = "mouse_hippocampus_st_Hippo{}.h5ad"
_MOB = "mouse_olfactory_bulb_st_MOB{}.h5ad"
_HER2 = "her2_breast_st_patientC/her2_breast_st_C{}.h5ad"
QUICK = {
    "cortex_151674": Sections("cortex 151674", _files(_CORTEX, 151674), _SEEDS),
    "crc16": Sections("tumour CRC16", ("crc_visium_CRC16.h5ad",), _SEEDS),
    "hippo1": Sections("mouse brain Hippo1", _files(_HIPPO, 1), _SEEDS),
    "mob1": Sections("olfactory bulb MOB1", _files(_MOB, 1), _SEEDS),
    "her2_c4": Sections("breast tumour C4", _files(_HER2, 4), _SEEDS),
}
DENSE = {
    **QUICK,
    "cortex_151673": Sections("cortex 151673", _files(_CORTEX, 151673)),
    "cortex_151675": Sections("cortex 151675", _files(_CORTEX, 151675)),
    "cortex_151676": Sections("cortex 151676", _files(_CORTEX, 151676)),
    "cortex_all": Sections("cortex, 4 sections", _files(_CORTEX, 151673, 151674, 151675, 151676)),
    "hippo_all": Sections("mouse brain, 8 sections", _files(_HIPPO, *range(1, 9))),
    "mob_all": Sections("olfactory bulb, 4 sections", _files(_MOB, *range(1, 5))),
    "her2_all": Sections("breast tumour, 6 sections", _files(_HER2, *range(1, 7))),
}
SPARSE = {
    "slideseq": _sparse("cerebellum, Slide-seq", "cerebellum_slideseq_Puck_180819_11", 10, 0.005),
    "stereoseq": _sparse("mouse brain, Stereo-seq", "brain_stereoseq_SS200000135TL_D1_crop_bin10", 20, 0.01),
    "starmap": _sparse("visual cortex, STARmap", "visual_cortex_starmap_BY3_1k", 50, 0.02),
    "xenium": _sparse("mouse brain, Xenium", "brain_xenium", 20, 0.01),
    "merfish": _sparse("motor cortex, MERFISH", "motor_cortex_merfish", 20, 0.01),
    "osmfish": _sparse("somatosensory cortex, osmFISH", "ss_cortex_osmfish", 20, 0.01),
    **{f"{name}_{percent}pct": _thinned(of, percent) for percent in (5, 20) for name, of in QUICK.items()},
}
SETS = {**DENSE, **SPARSE}
GROUPS = {"quick": QUICK, "dense": DENSE, "sparse": SPARSE}


@dataclass(frozen=True)
class Case:
    """One input of the methods: a set, a protocol and a seed."""

    name: str
    protocol: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name} {self.protocol} seed {self.seed}"

    @property
    def methods(self) -> tuple[str, ...]:
        return (OURS, *PEERS[self.protocol])

    @property
    def file(self) -> str:
        return f"{self.name}_{self.protocol}_seed{self.seed}.json"


CASES = [Case(name, p, seed) for name, sections in SETS.items() for seed in sections.seeds for p in sections.protocols]
