"""Whether completed data train better predictors of expression from images: the predictors, their data and their scores.

``predict.py`` beside this folder runs them. All that makes a result is here; a change makes all results anew.
"""

from functools import partial

from .contrastive import Contrastive
from .exemplar import Exemplars
from .graph import LocalGraph
from .linear import Linear
from .mlp import PatchHead
from .sections import Mean, Predictor, Regression, Section
from .transformer import SectionTransformer

PREDICTORS = {
    "linear": Linear,
    "mlp": partial(Regression, PatchHead),
    "transformer": partial(Regression, SectionTransformer),
    "contrastive": Contrastive,
    "exemplar": partial(Regression, Exemplars),
    "graph": partial(Regression, LocalGraph),
}
REFERENCES = {"mean": Mean}

__all__ = ["PREDICTORS", "REFERENCES", "Predictor", "Section"]
