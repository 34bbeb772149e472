"""SASRec trained from content."""

from experiments.models.sasrec import with_table

METHOD = with_table("content")
