"""Minibatches of spots with their neighbourhoods."""
