"""The outcome of the runs: status, results, tables and figures."""
