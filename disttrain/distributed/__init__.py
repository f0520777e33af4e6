"""What connects the ranks: rendezvous, process group and device, and how the process of a rank ends."""
