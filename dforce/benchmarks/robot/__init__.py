"""Robot policies in simulation: success by stage, under faults, as fast as they act."""
