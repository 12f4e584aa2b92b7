"""One run in progress: its setup, its trail, its generations and its result."""
