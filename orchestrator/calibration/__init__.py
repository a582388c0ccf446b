"""How well this machine's software uses it: measured, fitted, and kept as a profile."""
