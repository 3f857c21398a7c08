"""The one training loop, and the mathematics that it runs."""
