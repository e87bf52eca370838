"""How true a setting stays to a reference over a long drive: recordings, errors, reports."""
