"""Studies: many trials read together, their effects, and rulings on claims that were stated beforehand."""
