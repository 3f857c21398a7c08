"""The benchmark of repairs, over the faulty trainings of the detection corpus."""
