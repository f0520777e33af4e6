"""The measurements of a run that starts and trains: phases, telemetry, clocks, start check, all-reduces."""
