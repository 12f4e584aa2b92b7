"""What a run would take on this machine: measure the engine, take lengths of traces, simulate, recommend."""
