"""Missing parts of an AnnData, named all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgdist_scvi._checks import check_label

if TYPE_CHECKING:
    from anndata import AnnData


def refuse_several_missing(adata: AnnData, **named: dict[str, str | None]) -> None:
    """Name all that is missing at once; of one missing thing the later checks say more.

    Parameters
    ----------
    adata
        Annotated spots.
    **named
        For each part of `adata` (``obs``, ``obsm``, ``layers``) the keys that must be in it, by argument.

    Raises
    ------
    KeyError
        If two or more are missing.
    TypeError
        If a key cannot be a name.
    """
    for keys in named.values():
        check_label(**keys)
    missing = [
        f"adata.{place}[{key!r}] ({argument})"
        for place, keys in named.items()
        for argument, key in keys.items()
        if key is not None and key not in getattr(adata, place)
    ]
    if len(missing) > 1:
        found = {place: [key for key in getattr(adata, place) if key is not None] for place in named}
        raise KeyError(
            f"adata lacks {', '.join(missing)}; add them, or in a setup correct the arguments (found: "
            f"{'; '.join(f'{place}: {keys}' for place, keys in found.items())})."
        )
