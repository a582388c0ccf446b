"""An engine that keeps time like a real one and computes nothing: for routers under test."""
