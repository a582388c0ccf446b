"""The custom resource `TandemService`, generated from the one spec."""
