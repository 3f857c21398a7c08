"""What the finished trials of a study say: effects, rulings on claims, boundaries."""
