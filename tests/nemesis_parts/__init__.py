"""The parts of the nemesis: load with its own log, faults, links, processes, and the checker."""
