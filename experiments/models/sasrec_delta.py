"""SASRec whose item table is content plus a norm-bounded trainable delta."""

from experiments.models.sasrec import with_values

METHOD = with_values(item_table="delta")
