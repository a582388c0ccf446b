"""A real router for loads."""

from __future__ import annotations

from tests.integration.router.conftest import model_dir, start_router

__all__ = ["model_dir", "start_router"]
