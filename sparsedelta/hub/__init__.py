"""The Hugging Face Hub: references to its repositories, what is read from them, what is pushed."""
