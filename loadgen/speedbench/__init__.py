"""SPEED-Bench (arXiv 2604.09557): how far drafts are accepted, and what that brings in speed."""
