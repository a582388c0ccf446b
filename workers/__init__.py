"""Everything one worker needs: model, state, hand-off, engine, and the server around them."""
