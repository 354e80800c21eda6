"""Numbers of a trained model on text and multiple-choice questions, and what a text costs it token by token."""
