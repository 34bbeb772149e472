"""SASRec whose item table is content plus a norm-bounded trainable delta."""

from experiments.models.sasrec import with_table

METHOD = with_table("delta")
