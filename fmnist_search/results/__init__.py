"""What a training, a study and a champion come to: frozen values."""
