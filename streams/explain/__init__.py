"""``tollway explain``: what is known of one request, gathered and put into words.

``tracing`` gathers a :class:`~streams.explain.trace.Trace` from topics and ledger; ``report`` turns
it into sections of words, purely; ``decision``, ``money`` and ``wording`` are its parts.
"""
