"""What holds for all tests."""

from hypothesis import settings

# A busy machine is no fault: no example has a time limit of its own.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
