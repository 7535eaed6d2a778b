"""Inputs that went wrong at random: each is refused by a check of ours or used as it should be; none is silent or does harm."""
