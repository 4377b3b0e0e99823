"""First-person walks through random mazes, drawn by the Doom engine."""
