"""The folder of a sweep on a cluster, and its ledger."""
