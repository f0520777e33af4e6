"""Computes results from the records: phases, communication overlap, bandwidth, summary. Loads no torch."""
