"""Makes the decisions of a log anew, from the topics alone, and compares them byte for byte.

``histories`` has the catalog and the statistics as they were at an offset, ``places`` reads a
partition's records, ``rounds`` puts the decisions of one call together again, ``past`` has the
state before each and decides it anew, ``replayer`` goes through a partition, ``compare`` says what
differs, ``run`` does it for all partitions.
"""
