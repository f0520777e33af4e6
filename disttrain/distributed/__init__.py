"""The ranks together: rendezvous, process group, device, and how a rank's process ends."""
