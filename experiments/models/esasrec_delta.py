"""eSASRec whose item table is content plus a norm-bounded trainable delta."""

from experiments.models.sasrec import with_values

METHOD = with_values(layers="ligr", item_table="delta")
