"""The core: numpy in, values out; no clock, no I/O, no environment."""
