"""Figures drawn from the records of a sweep's runs."""
