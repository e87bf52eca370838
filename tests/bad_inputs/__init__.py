"""Bad inputs made by chance, and what the commands answer to them.

    python -m tests.bad_inputs --count 1000 --seed 0

prints a table by kind, and every input that was answered otherwise than it should be.
"""
