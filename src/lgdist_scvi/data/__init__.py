"""Registration, neighbourhoods and validation of the user's data."""
