"""How well is failure detected? Ours and its peers on the same trainings."""
