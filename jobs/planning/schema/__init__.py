"""The JSON Schemas of sweeps and profiles, with which an editor completes and checks these files."""
