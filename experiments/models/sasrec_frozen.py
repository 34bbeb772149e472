"""SASRec whose item table is the content, frozen."""

from experiments.models.sasrec import with_table

METHOD = with_table("frozen")
