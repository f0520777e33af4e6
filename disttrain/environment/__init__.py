"""Who this rank is, from the launcher's environment. Loads no torch."""
