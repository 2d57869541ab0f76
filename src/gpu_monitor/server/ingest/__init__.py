"""Takes what agents send: reads it without trust, and has it written in groups."""
