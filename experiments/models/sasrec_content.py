"""SASRec trained from content."""

from experiments.models.sasrec import with_values

METHOD = with_values(item_table="content")
