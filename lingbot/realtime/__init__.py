"""A world being driven: the session and what each of its steps reports."""
