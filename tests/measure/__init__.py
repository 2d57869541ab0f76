"""Measurements of the real program (scripts/bench) and the long kill test (scripts/soak). Not collected by pytest."""
