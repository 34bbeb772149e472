"""eSASRec: SASRec with the gated layers of LiGR."""

from experiments.models.sasrec import with_values

METHOD = with_values(layers="ligr")
