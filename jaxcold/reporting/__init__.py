"""What a run writes and shows: logs, progress, tables and figures."""
