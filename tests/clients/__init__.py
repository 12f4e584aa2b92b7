"""Real clients against real servers, each in an environment of its own where its dependencies could clash."""
