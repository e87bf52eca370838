"""Measuring realtime steps: settings in turns, on several ranks, against a floor."""
