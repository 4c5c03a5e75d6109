"""What a user can do: run a study, train, promote, reproduce, clean up."""
