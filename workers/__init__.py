"""Everything one worker needs: model, state, hand-off, engine, and the server around them."""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
