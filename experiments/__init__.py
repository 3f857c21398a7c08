"""Studies and measurements; the written ones are dated."""
