def batch() -> None:
    """x"""
