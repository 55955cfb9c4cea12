"""What the benchmarks that train classifiers have in common."""
