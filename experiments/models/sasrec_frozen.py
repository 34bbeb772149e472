"""SASRec whose item table is the content, frozen."""

from experiments.models.sasrec import with_values

METHOD = with_values(item_table="frozen")
