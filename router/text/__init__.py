"""Text to tokens and tokens to text, as the checkpoint's own tokenizer files say."""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
