"""Text to tokens and tokens to text, as the checkpoint's own tokenizer files say."""
