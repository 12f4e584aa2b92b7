"""The problems of benchmarks, and how an answer is scored."""
