"""What is sent: real text in the wanted number of tokens."""
