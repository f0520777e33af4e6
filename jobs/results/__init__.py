"""What became of the runs: status, results, tables and figures."""
