"""What finished trials say: effects, claims, boundaries."""
