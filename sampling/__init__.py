"""Generator and tokenizer to images, and how good they are."""
