"""How worlds are trained."""
