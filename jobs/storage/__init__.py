"""The folder of a sweep on one cluster, and the ledger of its submissions."""
