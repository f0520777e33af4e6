"""What is measured while a run starts and trains: phases, telemetry, clocks, start check, all-reduces."""
