"""How many workers of each role there should be: observed traffic in, decisions out."""
