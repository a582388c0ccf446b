"""From logits to tokens: penalties, filters, grammars, draws, and the check of draft tokens."""
