"""The demo: recorded prompts, simulated callers, a story, and a check of every law at the end."""
