"""How worlds are trained: what is resumed, and how."""
