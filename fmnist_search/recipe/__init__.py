"""What is trained and how it is run: frozen values without torch."""
